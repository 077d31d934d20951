"""The one decoder: what a DecoderSpec says, on one rank's heads, MLP columns and part of the vocabulary.

Shape suffixes: T tokens of the step, N tokens whose logits are wanted, H hidden size, V vocabulary of this
rank, P positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from headway.model.attention import Attention
from headway.model.batch import ModelInput
from headway.model.collectives import Collectives
from headway.model.linear import wide
from headway.model.mlp import ExpertMlp, Mlp
from headway.model.norm import ResidualNorm, plain_sum, residual_norm
from headway.model.rotary import Rotary
from headway.model.spec import DecoderSpec
from headway.sharding.heads import RankHeads
from headway_kernels import reference

Sublayer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """A block. Where its norms do not precede attention and MLP, plain sums take their place."""

    attn_norm: ResidualNorm
    attention: Attention
    attn_post_norm: ResidualNorm | None
    mlp_norm: ResidualNorm
    mlp: Mlp | ExpertMlp
    mlp_post_norm: ResidualNorm | None


class Decoder:
    """A rank's part of the model; every rank of `collectives` runs the same steps.

    params: this rank's weights by name; `head.weight` is absent where the head is tied. On a CPU the
        memory layout of some is changed in place, never their values.
    vocab: the token ids whose rows of embedding and head this rank has.
    ops: the module that computes; `headway_kernels.reference` or one with the same functions.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        heads: RankHeads,
        params: Mapping[str, Tensor],
        vocab: range,
        collectives: Collectives,
        ops: ModuleType = reference,
    ) -> None:
        self.spec = spec
        self.vocab = vocab
        self.collectives = collectives
        self._heads = heads
        self._ops = ops
        self.embed_VH = params["embed.weight"]
        self.head_VH = self.embed_VH if spec.tied_head else wide(params["head.weight"])
        # rounded to the weights' dtype, as the model was trained
        self.embed_scale = float(torch.tensor(spec.embed_scale, dtype=self.embed_VH.dtype))
        self.positions_PH = params.get("positions.weight")  # on rank 0 alone
        self.embed_norm = residual_norm(spec, params, "embed_norm", ops)
        self.norm = residual_norm(spec, params, "norm", ops) or plain_sum
        self.rotary = [Rotary(rope, self.embed_VH.device) for rope in spec.ropes]
        self.layers = [
            _layer(spec, index, params, heads, collectives, ops) for index in range(spec.num_layers)
        ]

    @torch.inference_mode()
    def forward(self, batch: ModelInput, k_pools: Sequence[Tensor], v_pools: Sequence[Tensor]) -> Tensor:
        """Write the step's keys and values to the pools; return this rank's logits_NV.

        k_pools, v_pools: [pages, kv_heads, page_size, head_dim], one a layer.
        """
        block = self._parallel_block if self.spec.parallel else self._block
        lengths = (batch.lengths_T, batch.limits_T)
        angles = [rotary.cos_sin(batch.positions_T, *lengths) for rotary in self.rotary]
        plans = [self._plan(batch, window) for window in self.spec.windows]
        x_TH, residual_TH = self._embed(batch), None
        for layer, k_pool, v_pool in zip(self.layers, k_pools, v_pools, strict=True):
            attend = partial(
                layer.attention, batch=batch, angles=angles, k_pool=k_pool, v_pool=v_pool, plans=plans
            )
            x_TH, residual_TH = block(layer, attend, x_TH, residual_TH)
        return self._logits(x_TH, residual_TH, batch.last_N)

    def step_sizes(self, most: int) -> tuple[int, ...]:
        """Numbers of tokens, up to `most`, with kernels of their own; layers with experts have the same."""
        sparse = (layer.mlp for layer in self.layers if isinstance(layer.mlp, ExpertMlp))
        experts = next(sparse, None)
        return () if experts is None else experts.step_sizes(most)

    def _plan(self, batch: ModelInput, window: int | None) -> Any:
        """The decode part's plan for the layers of a page group, if there is a decode part."""
        if not batch.num_decode:
            return None
        return self._ops.plan_decode(
            batch.decode_context_lens_B,
            num_kv_heads=self._heads.num_kv_heads,
            group=max(high - low for low, high in pairwise(self._heads.group_bounds)),
            head_dim=self.spec.head_dim,
            dtype=self.embed_VH.dtype,
            window=window,
        )

    def _block(
        self, layer: _Layer, attend: Sublayer, x_TH: Tensor, residual_TH: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attention, then the MLP; returns the MLP's output and the residual it is yet to be added to."""
        x_TH, residual_TH = layer.attn_norm(x_TH, residual_TH)
        x_TH = self._sum(attend(x_TH))
        if layer.attn_post_norm is not None:
            x_TH, _ = layer.attn_post_norm(x_TH, None)
        x_TH, residual_TH = layer.mlp_norm(x_TH, residual_TH)
        x_TH = self._sum(layer.mlp(x_TH))
        if layer.mlp_post_norm is not None:
            x_TH, _ = layer.mlp_post_norm(x_TH, None)
        return x_TH, residual_TH

    def _parallel_block(
        self, layer: _Layer, attend: Sublayer, x_TH: Tensor, residual_TH: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attention beside the MLP: both read the same residual, and one sum over ranks serves both."""
        x_TH, residual_TH = layer.attn_norm(x_TH, residual_TH)
        mlp_x_TH = x_TH if self.spec.shared_norm else layer.mlp_norm(residual_TH, None)[0]
        return self._sum(layer.mlp(mlp_x_TH, attend(x_TH))), residual_TH

    def _embed(self, batch: ModelInput) -> Tensor:
        x_TH = self._token_rows(batch.token_ids_T)
        if self.positions_PH is not None:
            x_TH = x_TH + F.embedding(batch.positions_T, self.positions_PH)
        x_TH = self._sum(x_TH)
        if self.embed_scale != 1:
            x_TH = x_TH * self.embed_scale
        return x_TH if self.embed_norm is None else self.embed_norm(x_TH, None)[0]

    def _token_rows(self, token_ids_T: Tensor) -> Tensor:
        """Rows of the embedding; zeros for tokens that another rank has."""
        if self.collectives.world_size == 1:
            return F.embedding(token_ids_T, self.embed_VH)
        row_T = token_ids_T - self.vocab.start
        elsewhere_T = (row_T < 0) | (row_T >= len(self.vocab))
        x_TH = F.embedding(row_T.masked_fill(elsewhere_T, 0), self.embed_VH)
        return x_TH.masked_fill_(elsewhere_T[:, None], 0)

    def _logits(self, x_TH: Tensor, residual_TH: Tensor | None, last_N: Tensor) -> Tensor:
        """Norm and head of the wanted tokens alone."""
        residual_NH = None if residual_TH is None else residual_TH[last_N]
        logits_NV: Tensor = self._ops.linear(self.norm(x_TH[last_N], residual_NH)[0], self.head_VH)
        cap = self.spec.logits_softcap
        return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)

    def _sum(self, x_TH: Tensor) -> Tensor:
        return self.collectives.all_reduce(x_TH)


def _layer(
    spec: DecoderSpec,
    index: int,
    params: Mapping[str, Tensor],
    heads: RankHeads,
    collectives: Collectives,
    ops: ModuleType,
) -> _Layer:
    prefix = f"layers.{index}."
    own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
    return _Layer(
        attn_norm=residual_norm(spec, own, "attn_norm", ops) or plain_sum,
        attention=Attention(spec, index, own, heads, collectives, ops),
        attn_post_norm=residual_norm(spec, own, "attn_post_norm", ops),
        mlp_norm=residual_norm(spec, own, "mlp_norm", ops) or plain_sum,
        mlp=ExpertMlp(spec, own, ops) if spec.layers[index].sparse else Mlp(spec, own, ops),
        mlp_post_norm=residual_norm(spec, own, "mlp_post_norm", ops),
    )
