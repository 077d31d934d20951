"""The part of `headway_kernels.reference` that ranks do together, as functions of what every rank has.

Shape suffixes: T tokens of the step, H hidden size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor


def all_reduce(parts: Sequence[Tensor]) -> Tensor:
    """The sum of all ranks' tensors, added in rank order in float32, then rounded to their dtype."""
    total = parts[0].float() if parts[0].dtype != torch.float64 else parts[0]
    for part in parts[1:]:
        total = total + part
    return total.to(parts[0].dtype)


def all_reduce_norm(
    parts_TH: Sequence[Tensor], weight_H: Tensor, eps: float, residual_TH: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`rms_norm` of the parts' `all_reduce`, which is rounded to its dtype; returns (normed, the sum)."""
    total_TH = all_reduce(parts_TH)
    if residual_TH is not None:
        total_TH = total_TH + residual_TH
    if weight_H.dtype == total_TH.dtype:
        return F.rms_norm(total_TH, weight_H.shape, weight_H, eps), total_TH
    return F.rms_norm(total_TH.float(), weight_H.shape, weight_H, eps).to(total_TH.dtype), total_TH
