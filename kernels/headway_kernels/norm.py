"""RMS and layer norm, with the addition of a residual before them.

    s = round(x + residual)
    rms_norm    s / sqrt(mean(s^2) + eps) * weight
    layer_norm  (s - mean(s)) / sqrt(mean((s - mean(s))^2) + eps) * weight + bias

(arXiv 1910.07467, 1607.06450.) s is rounded to the dtype of x, as it is stored; from there on all is float32,
and rounded once. A weight in float32 keeps its digits: Gemma's is 1 + w.

A row is read once and stays in registers: mean and centred squares cost no second reading. Its values are
summed in an order that depends on H alone, so a row's norm is the same in any batch.

Layout: x [T, H], or [T, heads, H] with any strides but the last: a slice of fused queries, keys and values is
read where it lies. Results are dense. Grid: a program for each row of 512 values or more, or for several
shorter ones.

Shape suffixes: as in `reference`; N rows of a program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.launch import DTYPES, FUSED, mismatch
from headway_kernels.tiles import norm_tile

MOST_VALUES = 1 << 15  # of a row: 64 a thread


def rms_norm(
    x_TH: Tensor,
    weight_H: Tensor,
    eps: float,
    residual_TH: Tensor | None = None,
    *,
    out_TH: Tensor | None = None,
    sum_TH: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.rms_norm` -> (normed, the sum), in the given tensors if there are any.

    Without a residual the sum is `x_TH` itself. Raises ValueError for arguments that do not fit each other.
    """
    return _norm("rms_norm", x_TH, weight_H, None, eps, residual_TH, out_TH, sum_TH)


def layer_norm(
    x_TH: Tensor,
    weight_H: Tensor,
    bias_H: Tensor | None,
    eps: float,
    residual_TH: Tensor | None = None,
    *,
    out_TH: Tensor | None = None,
    sum_TH: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.layer_norm` -> (normed, the sum), in the given tensors if there are any.

    Without a residual the sum is `x_TH` itself. Raises ValueError for arguments that do not fit each other.
    """
    return _norm("layer_norm", x_TH, weight_H, bias_H, eps, residual_TH, out_TH, sum_TH)


def _norm(
    op: str,
    x_TH: Tensor,
    weight_H: Tensor,
    bias_H: Tensor | None,
    eps: float,
    residual_TH: Tensor | None,
    out_TH: Tensor | None,
    sum_TH: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _check(op, x_TH, weight_H, bias_H, residual_TH, out_TH, sum_TH)
    size, heads = x_TH.shape[-1], x_TH.shape[1] if x_TH.ndim == 3 else 1
    num_rows = len(x_TH) * heads
    if out_TH is None:
        out_TH = torch.empty(x_TH.shape, dtype=x_TH.dtype, device=x_TH.device)
    if residual_TH is None:
        sum_TH = x_TH
    elif sum_TH is None:
        sum_TH = torch.empty(x_TH.shape, dtype=x_TH.dtype, device=x_TH.device)
    if num_rows:
        tile = norm_tile(size)
        _norm_kernel[(triton.cdiv(num_rows, tile.rows),)](
            x_TH,
            residual_TH,
            weight_H,
            bias_H,
            out_TH,
            sum_TH,
            num_rows,
            eps,
            *_row_strides(x_TH),
            *_row_strides(residual_TH),
            H=size,
            HEADS=heads,
            ROWS=tile.rows,
            WIDE=tile.wide,
            CENTRED=op == "layer_norm",
            HAS_RESIDUAL=residual_TH is not None,
            HAS_BIAS=bias_H is not None,
            num_warps=tile.num_warps,
            **FUSED,
        )
    return out_TH, sum_TH


def _row_strides(x: Tensor | None) -> tuple[int, int]:
    """From a token to the next, and from a head to the next."""
    if x is None:
        return 0, 0
    return x.stride(0), x.stride(1) if x.ndim == 3 else 0


def _check(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    sum_: Tensor | None,
) -> None:
    """Raise ValueError, naming argument, expected and found, for what the kernel does not take."""
    if (
        x.ndim not in (2, 3)
        or x.dtype not in DTYPES
        or not 0 < x.shape[-1] <= MOST_VALUES
        or x.stride(-1) != 1
    ):
        expected = f"[T, H] or [T, heads, H] in a 16- or 32-bit float, H dense and up to {MOST_VALUES}"
        raise mismatch(op, "x_TH", expected, x)
    size = x.shape[-1]
    for name, values in (("weight_H", weight), ("bias_H", bias)):
        if values is not None and (
            values.shape != x.shape[-1:]
            or values.dtype not in (x.dtype, torch.float32)
            or values.device != x.device
            or values.stride(0) != 1
        ):
            raise mismatch(op, name, f"{x.dtype} or torch.float32 [{size}] on {x.device}, dense", values)
    for name, like in (("residual_TH", residual), ("out_TH", out), ("sum_TH", sum_)):
        if like is None:
            continue
        if like.shape != x.shape or like.dtype != x.dtype or like.device != x.device or like.stride(-1) != 1:
            raise mismatch(op, name, f"{x.dtype} {list(x.shape)} on {x.device}, H dense", like)
        if like is not residual and not like.is_contiguous():
            raise mismatch(op, name, "contiguous", like)
    if sum_ is not None and residual is None:
        raise ValueError(f"{op}: sum_TH must come with residual_TH: without it the sum is x_TH")


@triton.jit(do_not_specialize=["num_rows"])
def _norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    sum_ptr,
    num_rows,
    eps,
    x_token,
    x_head,
    residual_token,
    residual_head,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    CENTRED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    row_N1 = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    token_N1, head_N1 = (row_N1 // HEADS).to(tl.int64), row_N1 % HEADS
    h_1H = tl.arange(0, WIDE)[None]
    real_1H = h_1H < H
    real_NH = (row_N1 < num_rows) & real_1H
    place_NH = row_N1.to(tl.int64) * H + h_1H
    x_NH = tl.load(x_ptr + (token_N1 * x_token + head_N1 * x_head) + h_1H, mask=real_NH, other=0.0)
    if HAS_RESIDUAL:
        residual_N1 = token_N1 * residual_token + head_N1 * residual_head
        residual_NH = tl.load(residual_ptr + residual_N1 + h_1H, mask=real_NH, other=0.0)
    # before the sums, which would otherwise delay these reads
    weight_1H = tl.load(weight_ptr + h_1H, mask=real_1H, other=0.0)
    if HAS_BIAS:
        bias_1H = tl.load(bias_ptr + h_1H, mask=real_1H, other=0.0)
    if HAS_RESIDUAL:
        x_NH = (x_NH.to(tl.float32) + residual_NH.to(tl.float32)).to(x_NH.dtype)
        tl.store(sum_ptr + place_NH, x_NH, mask=real_NH)
    value_NH = x_NH.to(tl.float32)
    if CENTRED:
        mean_N = tl.sum(value_NH, 1) / H
        value_NH = tl.where(real_1H, value_NH - mean_N[:, None], 0.0)
    scale_N = tl.rsqrt(tl.sum(value_NH * value_NH, 1) / H + eps)
    out_NH = value_NH * scale_N[:, None] * weight_1H.to(tl.float32)
    if HAS_BIAS:
        out_NH += bias_1H.to(tl.float32)
    tl.store(out_ptr + place_NH, out_NH.to(out_ptr.dtype.element_ty), mask=real_NH)
