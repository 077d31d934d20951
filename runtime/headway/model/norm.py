"""Norms: of the residual, and of queries and keys.

Shape suffixes: T tokens of the step, H hidden size, Q query heads of this rank, G its KV heads, D values of a
head.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from headway.model.collectives import Collectives
from headway.model.spec import DecoderSpec, Norm, QkNorm
from headway.sharding.heads import RankHeads

Params = Mapping[str, Tensor]
ResidualNorm = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
HeadsNorm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def residual_norm(spec: DecoderSpec, params: Params, name: str, ops: ModuleType) -> ResidualNorm | None:
    """The norm called `name`: (x_TH, residual_TH or None) -> (the norm of their sum, the sum).

    None where the decoder has no such norm.
    """
    if f"{name}.weight" not in params:
        return None
    weight_H = _weight(spec, params[f"{name}.weight"])
    if spec.norm is Norm.RMS:
        return partial(_rms_norm, ops, weight_H, spec.norm_eps)
    return partial(_layer_norm, ops, weight_H, params.get(f"{name}.bias"), spec.norm_eps)


def plain_sum(x_TH: Tensor, residual_TH: Tensor | None) -> tuple[Tensor, Tensor]:
    """What stands for a norm where there is none: (the sum, the sum)."""
    total_TH = x_TH if residual_TH is None else x_TH + residual_TH
    return total_TH, total_TH


def each_head_norm(spec: DecoderSpec, params: Params) -> dict[str, Any]:
    """The norm of each query and key head for itself, as arguments of `kv_write`; none without one."""
    if spec.qk_norm is not QkNorm.HEAD:
        return {}
    q_weight_D, k_weight_D = _qk_weights(spec, params)
    return {"q_norm_D": q_weight_D, "k_norm_D": k_weight_D, "eps": spec.norm_eps}


def all_heads_norm(
    spec: DecoderSpec, params: Params, heads: RankHeads, collectives: Collectives
) -> HeadsNorm | None:
    """The norm of all queries, and of all keys, of a token: (q_TQD, k_TGD) -> the same, normalised; None
    without one.
    """
    if spec.qk_norm is not QkNorm.ALL:
        return None
    return _AllHeads(spec, heads, collectives, *_qk_weights(spec, params))


def _rms_norm(
    ops: ModuleType, weight_H: Tensor, eps: float, x_TH: Tensor, residual_TH: Tensor | None
) -> tuple[Tensor, Tensor]:
    normed: tuple[Tensor, Tensor] = ops.rms_norm(x_TH, weight_H, eps, residual_TH)
    return normed


def _layer_norm(
    ops: ModuleType,
    weight_H: Tensor,
    bias_H: Tensor | None,
    eps: float,
    x_TH: Tensor,
    residual_TH: Tensor | None,
) -> tuple[Tensor, Tensor]:
    normed: tuple[Tensor, Tensor] = ops.layer_norm(x_TH, weight_H, bias_H, eps, residual_TH)
    return normed


class _AllHeads:
    """A norm over all heads of a token, whichever ranks have them: the ranks' sums of squares are added up.

    A KV head that several ranks hold is counted by the first of them.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        heads: RankHeads,
        collectives: Collectives,
        q_weight: Tensor,
        k_weight: Tensor,
    ) -> None:
        self._eps = spec.norm_eps
        self._collectives = collectives
        self._first_own = heads.num_replicas
        self._q_weight_QD = q_weight.view(-1, spec.head_dim)
        self._k_weight_GD = k_weight.view(-1, spec.head_dim)
        sizes = (spec.num_q_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim)
        self._sizes_2 = torch.tensor(sizes, dtype=torch.float32, device=q_weight.device)

    def __call__(self, q_TQD: Tensor, k_TGD: Tensor) -> tuple[Tensor, Tensor]:
        q32_TQD, k32_TGD = q_TQD.float(), k_TGD.float()
        squares = (q32_TQD.square().sum((1, 2)), k32_TGD[:, self._first_own :].square().sum((1, 2)))
        sums_T2 = self._collectives.all_reduce(torch.stack(squares, 1))
        factor_T2 = (sums_T2 / self._sizes_2 + self._eps).rsqrt()
        q32_TQD = q32_TQD * factor_T2[:, :1, None] * self._q_weight_QD
        k32_TGD = k32_TGD * factor_T2[:, 1:, None] * self._k_weight_GD
        return q32_TQD.to(q_TQD.dtype), k32_TGD.to(k_TGD.dtype)


def _qk_weights(spec: DecoderSpec, params: Params) -> tuple[Tensor, Tensor]:
    return _weight(spec, params["q_norm.weight"]), _weight(spec, params["k_norm.weight"])


def _weight(spec: DecoderSpec, weight: Tensor) -> Tensor:
    """With the offset, in float32: half precision would round 1 + w to too few digits of w."""
    return weight.float() + spec.norm_offset if spec.norm_offset else weight
