"""Attention of one layer, on one rank's heads.

Shape suffixes: T tokens of the step, H hidden size, Q query heads of this rank, G its KV heads, X = Q + 2G,
D values of a head, R rotated ones.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from headway.model.batch import ModelInput
from headway.model.collectives import Collectives
from headway.model.linear import wide
from headway.model.norm import all_heads_norm, each_head_norm
from headway.model.spec import DecoderSpec
from headway.sharding.heads import RankHeads


class Attention:
    """Layer `index` of `spec`; params: its tensors, by their names within the layer.

    The bias of `o` is added before ranks are summed, so rank 0 alone has it.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        index: int,
        params: Mapping[str, Tensor],
        heads: RankHeads,
        collectives: Collectives,
        ops: ModuleType,
    ) -> None:
        self._ops = ops
        self._head_dim = spec.head_dim
        self._sizes = (heads.num_q_heads, heads.num_kv_heads, heads.num_kv_heads)
        self._qkv, self._qkv_bias = wide(params["qkv.weight"]), params.get("qkv.bias")
        self._o, self._o_bias = params["o.weight"], params.get("o.bias")
        self._clip = spec.clip_qkv
        self._all_heads_norm = all_heads_norm(spec, params, heads, collectives)
        self._each_head_norm = each_head_norm(spec, params)
        self._group = spec.layer_groups[index]
        self._rope = spec.layer_ropes[index]
        slopes = torch.tensor(spec.alibi_slopes[heads.q.start : heads.q.stop], device=self._o.device)
        self._options = {
            "group_bounds": heads.group_bounds,
            "scale": spec.scale,
            "window": spec.layers[index].window,
            "softcap": spec.attention_softcap,
            "sinks_Q": params.get("sinks.weight"),
            "alibi_slopes_Q": slopes if spec.alibi_slopes else None,
        }

    def __call__(
        self,
        x_TH: Tensor,
        batch: ModelInput,
        angles: Sequence[tuple[Tensor, Tensor]],
        k_pool: Tensor,
        v_pool: Tensor,
        plans: Sequence[Any],
    ) -> Tensor:
        """Write the tokens' keys and values to the pools; return this rank's part of the sum over ranks.

        angles: (cos_TR, sin_TR) of each rotary embedding of the decoder.
        plans: of the step's decode part, by page group.
        """
        qkv_TXD = self._ops.linear(x_TH, self._qkv, self._qkv_bias).view(len(x_TH), -1, self._head_dim)
        if self._clip is not None:
            qkv_TXD = qkv_TXD.clamp(-self._clip, self._clip)
        q_TQD, k_TGD, v_TGD = qkv_TXD.split_with_sizes(self._sizes, 1)
        if self._all_heads_norm is not None:
            q_TQD, k_TGD = self._all_heads_norm(q_TQD, k_TGD)
        cos_TR, sin_TR = (None, None) if self._rope is None else angles[self._rope]
        q_TQD = self._ops.kv_write(
            q_TQD,
            k_TGD,
            v_TGD,
            cos_TR=cos_TR,
            sin_TR=sin_TR,
            slots_T=batch.groups[self._group].slots_T,
            k_pool=k_pool,
            v_pool=v_pool,
            **self._each_head_norm,
        )
        out_TQD = self._attend(q_TQD, batch, k_pool, v_pool, plans)
        out_TH: Tensor = self._ops.linear(out_TQD.flatten(1), self._o, self._o_bias)
        return out_TH

    def _attend(
        self, q_TQD: Tensor, batch: ModelInput, k_pool: Tensor, v_pool: Tensor, plans: Sequence[Any]
    ) -> Tensor:
        pages = batch.groups[self._group]
        num_decode = batch.num_decode
        parts: list[Tensor] = []
        if num_decode:
            parts.append(
                self._ops.paged_decode(
                    q_TQD[:num_decode],
                    k_pool,
                    v_pool,
                    page_table_BP=pages.decode_table_BP,
                    context_lens_B=batch.decode_context_lens_B,
                    max_context_len=batch.max_context_len,
                    plan=plans[self._group],
                    **self._options,
                )
            )
        if batch.prefill_lengths:
            parts.append(
                self._ops.flash_prefill(
                    q_TQD[num_decode:],
                    k_pool,
                    v_pool,
                    page_table_SP=pages.prefill_table_SP,
                    query_starts=batch.query_starts,
                    context_lens_S=batch.prefill_context_lens_S,
                    lengths=batch.prefill_lengths,
                    **self._options,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)
