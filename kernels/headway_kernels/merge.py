"""Partial attention results over disjoint parts of a context, merged by their log-sum-exps.

    lse = log sum_k exp(lse_k),   out = sum_k exp(lse_k - lse) * out_k

Exact, in any order (arXiv 2501.01005, section 2.2). A part that saw nothing has lse minus infinity and weighs
nothing, whatever its output holds. Layout: parts [K, T, Q, D] with lse [K, T, Q] -> out [T, Q, D].
Grid: one program a token and head; parts are taken `PARTS` at a time.

Shape suffixes: as in `reference`; K parts of a context.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.launch import DTYPES, FUSED, mismatch
from headway_kernels.online_softmax import LN_2, LOG2_E, LOWEST
from headway_kernels.tiles import padded


def merge(
    parts_KTQD: Tensor,
    lse_KTQ: Tensor,
    *,
    dtype: torch.dtype | None = None,
    out_TQD: Tensor | None = None,
    lse_TQ: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.merge` -> (out_TQD, lse_TQ), in the given tensors if there are any.

    lse_KTQ: float32, natural logarithms. dtype: of out_TQD; that of the parts if it is not given.
    Raises ValueError for tensors that do not fit each other.
    """
    dtype = dtype or parts_KTQD.dtype
    _check(parts_KTQD, lse_KTQ, dtype, out_TQD, lse_TQ)
    num_parts, num_tokens, num_heads, head_dim = parts_KTQD.shape
    parts_KTQD, lse_KTQ = parts_KTQD.contiguous(), lse_KTQ.contiguous()
    if out_TQD is None:
        out_TQD = torch.empty(parts_KTQD.shape[1:], dtype=dtype, device=parts_KTQD.device)
    if lse_TQ is None:
        lse_TQ = torch.empty(lse_KTQ.shape[1:], dtype=torch.float32, device=parts_KTQD.device)
    if num_tokens * num_heads:
        _merge_kernel[(num_tokens * num_heads,)](
            parts_KTQD,
            lse_KTQ,
            out_TQD,
            lse_TQ,
            num_parts,
            num_tokens * num_heads,
            D=head_dim,
            WIDE=padded(head_dim),
            PARTS=min(padded(num_parts, 1), 16),
            num_warps=1,
            **FUSED,
        )
    return out_TQD, lse_TQ


def _check(
    parts: Tensor, lse: Tensor, dtype: torch.dtype, out: Tensor | None, out_lse: Tensor | None
) -> None:
    """Raise ValueError, naming argument, expected and found, for what the kernel does not take."""
    if parts.ndim != 4 or parts.dtype not in DTYPES:
        raise mismatch("merge", "parts", "[parts, tokens, heads, head_dim] in a 16- or 32-bit float", parts)
    _, *shape, head_dim = parts.shape
    if lse.shape != parts.shape[:3] or lse.dtype != torch.float32 or lse.device != parts.device:
        raise mismatch("merge", "lse", f"float32 {list(parts.shape[:3])} on {parts.device}", lse)
    for name, result, expected in (
        ("out_TQD", out, ((*shape, head_dim), dtype, parts.device)),
        ("lse_TQ", out_lse, (tuple(shape), torch.float32, parts.device)),
    ):
        if result is None:
            continue
        if (tuple(result.shape), result.dtype, result.device) != expected or not result.is_contiguous():
            sizes, kind, device = expected
            raise mismatch("merge", name, f"contiguous {kind} {list(sizes)} on {device}", result)


@triton.jit(do_not_specialize=["num_parts"])
def _merge_kernel(
    parts_ptr,
    lse_parts_ptr,
    out_ptr,
    lse_ptr,
    num_parts,
    num_rows,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d_D = tl.arange(0, WIDE)
    max_, sum_ = tl.full((), LOWEST, tl.float32), tl.full((), 0.0, tl.float32)
    acc_D = tl.zeros((WIDE,), tl.float32)
    for begin in range(0, num_parts, PARTS):
        part_K = begin + tl.arange(0, PARTS)
        lse_K = tl.load(lse_parts_ptr + part_K * num_rows + row, mask=part_K < num_parts, other=float("-inf"))
        lse_K *= LOG2_E
        row_K = part_K.to(tl.int64) * num_rows + row
        real_KD = (lse_K > LOWEST)[:, None] & (d_D < D)  # what saw nothing may hold anything
        part_KD = tl.load(parts_ptr + row_K[:, None] * D + d_D, mask=real_KD, other=0.0).to(tl.float32)
        weight_K, keep, sum_, max_ = weigh(lse_K, sum_, max_)
        acc_D = acc_D * keep + tl.sum(part_KD * weight_K[:, None], 0)
    seen = sum_ > 0.0
    sum_ = tl.where(seen, sum_, 1.0)
    tl.store(out_ptr + row * D + d_D, (acc_D / sum_).to(out_ptr.dtype.element_ty), mask=d_D < D)
    tl.store(lse_ptr + row, tl.where(seen, (max_ + tl.log2(sum_)) * LN_2, float("-inf")))


@triton.jit
def weigh(lse_K, sum_, max_):
    """(weights, what is left of the sums before, sum, max) with parts of such log-sum-exps in base 2.

    Of one row, or of several: [K, H] with sums and maxima [H].
    """
    new_max = tl.maximum(max_, tl.max(lse_K, 0))
    weight_K = tl.exp2(lse_K - new_max)
    keep = tl.exp2(max_ - new_max)
    return weight_K, keep, sum_ * keep + tl.sum(weight_K, 0), new_max
