"""A weight times the few tokens of a decode step.

    out[t, o] = round(sum_h x[t, h] * weight[o, h] + bias[o]) (+ residual[t, o])

Memory-bound: the weight is read once, and its time is the floor. For one token (up to four of float32), a
program streams a few rows of it in wide tiles, and multiplies on the vector units: a thread adds up its own
values, and threads are summed once, at the end. More tokens fill the 16 columns that a product of the matrix
units takes; tiles of the weight are then fetched some stages ahead. A program has its rows of the weight
whole, so that a sum has one order, whatever the time and the other tokens' values. x is read by all programs
and stays in the caches; the weight passes through them. Loads take 16 bytes where H and the distances between
rows are multiples of that, and otherwise the greatest power of two that divides these. Where O is no multiple
of the tile, its last row is read again in place of rows that do not exist.
Layout: x [T, H], weight [O, H], out [T, O], rows dense. Grid: one program for each `tile.outputs` of O.

Source: our own.

Shape suffixes: T tokens, O outputs, H inputs, C groups of inputs that one thread loads at once.
"""

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.launch import DTYPES, FUSED, mismatch, precision
from headway_kernels.tiles_matmul import GEMV_TOKENS, GemvTiles, gemv_tiles


def gemv(
    x_TH: Tensor,
    weight_OH: Tensor,
    bias_O: Tensor | None = None,
    residual_TO: Tensor | None = None,
    *,
    tile: GemvTiles | None = None,
    out_TO: Tensor | None = None,
) -> Tensor:
    """As `reference.linear`, for 16 tokens at most -> out_TO, in the given tensor if there is one.

    Raises ValueError for tensors that do not fit each other, and for more tokens.
    """
    num_tokens, num_outputs = _check(x_TH, weight_OH, bias_O, residual_TO, out_TO)
    if out_TO is None:
        out_TO = torch.empty(num_tokens, num_outputs, dtype=x_TH.dtype, device=x_TH.device)
    if not out_TO.numel():
        return out_TO
    num_inputs = x_TH.shape[1]
    tile = tile or gemv_tiles(num_tokens, num_outputs, x_TH.dtype)
    x_row = x_TH.stride(0) if num_tokens > 1 else 0
    wide = gcd(16 // x_TH.itemsize, num_inputs, x_row, weight_OH.stride(0))
    kernel = _gemv_product_kernel if tile.product else _gemv_kernel
    kernel[(triton.cdiv(num_outputs, tile.outputs),)](
        x_TH,
        weight_OH,
        bias_O,
        residual_TO,
        out_TO,
        num_tokens,
        num_outputs,
        num_inputs // wide,
        x_row // wide,
        weight_OH.stride(0) // wide,
        0 if residual_TO is None else residual_TO.stride(0),
        out_TO.stride(0),
        TOKENS=16 if tile.product else num_tokens,
        OUTPUTS=tile.outputs,
        INPUTS=tile.inputs,
        WIDE=wide,
        EVEN=num_inputs % tile.inputs == 0,
        PRECISION=precision(x_TH.dtype),
        STAGES=tile.num_stages,
        num_warps=tile.num_warps,
        **FUSED,
    )
    return out_TO


SIZES = ("num_tokens", "num_outputs", "wide_inputs", "x_row", "weight_row", "residual_row", "out_row")


@triton.jit(do_not_specialize=SIZES)
def _gemv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_tokens,
    num_outputs,
    wide_inputs,
    x_row,
    weight_row,
    residual_row,
    out_row,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums for each of TOKENS. Sizes come divided by WIDE, so that the compiler knows what divides them."""
    tl.static_assert(TOKENS <= 4)
    num_inputs = wide_inputs * WIDE
    o_O = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    h_H = tl.arange(0, INPUTS)
    row_O = tl.minimum(o_O, num_outputs - 1).to(tl.int64)
    weight_OH = weight_ptr + row_O[:, None] * (weight_row * WIDE) + h_H[None]
    x_H = x_ptr + h_H
    x_row *= WIDE
    sum_0_OC = tl.zeros((OUTPUTS, INPUTS // WIDE), tl.float32)
    sum_1_OC = tl.zeros((OUTPUTS, INPUTS // WIDE), tl.float32)
    sum_2_OC = tl.zeros((OUTPUTS, INPUTS // WIDE), tl.float32)
    sum_3_OC = tl.zeros((OUTPUTS, INPUTS // WIDE), tl.float32)
    for begin in tl.range(0, num_inputs, INPUTS, num_stages=STAGES):
        left = num_inputs - begin
        w_OH = _load(weight_OH + begin, h_H[None], left, EVEN, "evict_first")
        sum_0_OC += _products(w_OH, _load(x_H + begin, h_H, left, EVEN, ""), WIDE)
        if TOKENS > 1:
            sum_1_OC += _products(w_OH, _load(x_H + begin + x_row, h_H, left, EVEN, ""), WIDE)
        if TOKENS > 2:
            sum_2_OC += _products(w_OH, _load(x_H + begin + 2 * x_row, h_H, left, EVEN, ""), WIDE)
        if TOKENS > 3:
            sum_3_OC += _products(w_OH, _load(x_H + begin + 3 * x_row, h_H, left, EVEN, ""), WIDE)
    real_O = o_O < num_outputs
    places = (bias_ptr, residual_ptr, out_ptr, residual_row, out_row)
    _write(tl.sum(sum_0_OC, 1), 0, row_O, real_O, places)
    if TOKENS > 1:
        _write(tl.sum(sum_1_OC, 1), 1, row_O, real_O, places)
    if TOKENS > 2:
        _write(tl.sum(sum_2_OC, 1), 2, row_O, real_O, places)
    if TOKENS > 3:
        _write(tl.sum(sum_3_OC, 1), 3, row_O, real_O, places)


@triton.jit(do_not_specialize=SIZES)
def _gemv_product_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    num_tokens,
    num_outputs,
    wide_inputs,
    x_row,
    weight_row,
    residual_row,
    out_row,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """TOKENS columns are computed; those without a token are zeros, and nothing is read for them."""
    num_inputs = wide_inputs * WIDE
    o_O = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    h_H = tl.arange(0, INPUTS)
    t_T = tl.arange(0, TOKENS)
    row_O = tl.minimum(o_O, num_outputs - 1).to(tl.int64)
    weight_OH = weight_ptr + row_O[:, None] * (weight_row * WIDE) + h_H[None]
    x_HT = x_ptr + t_T[None] * (x_row * WIDE) + h_H[:, None]
    sum_OT = tl.zeros((OUTPUTS, TOKENS), tl.float32)
    for begin in tl.range(0, num_inputs, INPUTS, num_stages=STAGES):
        left = num_inputs - begin
        real_HT = (t_T < num_tokens)[None] if EVEN else (t_T < num_tokens)[None] & (h_H < left)[:, None]
        w_OH = _load(weight_OH + begin, h_H[None], left, EVEN, "evict_first")
        sum_OT = tl.dot(w_OH, tl.load(x_HT + begin, mask=real_HT, other=0.0), sum_OT, PRECISION)
    real_OT = (o_O < num_outputs)[:, None] & (t_T < num_tokens)[None]
    places = (bias_ptr, residual_ptr, out_ptr, residual_row, out_row)
    _write(sum_OT, t_T[None], row_O[:, None], real_OT, places)


@triton.jit
def _load(pointers, h, left, EVEN: tl.constexpr, EVICTION: tl.constexpr):
    if EVEN:
        values = tl.load(pointers, eviction_policy=EVICTION)
    else:
        values = tl.load(pointers, mask=h < left, other=0.0, eviction_policy=EVICTION)
    return values


@triton.jit
def _products(w_OH, x_H, WIDE: tl.constexpr):
    """The products of the values that a thread has loaded at once, added up."""
    product_OH = w_OH.to(tl.float32) * x_H.to(tl.float32)[None]
    return tl.sum(product_OH.reshape(w_OH.shape[0], w_OH.shape[1] // WIDE, WIDE), 2)


@triton.jit
def _write(sums, t, row, real, places):
    """The sum is rounded before the residual is added, as where that is an operation of its own."""
    bias_ptr, residual_ptr, out_ptr, residual_row, out_row = places
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + row).to(tl.float32)
    out = sums.to(out_ptr.dtype.element_ty)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + t * residual_row + row, mask=real, other=0.0)
        out = (out.to(tl.float32) + residual.to(tl.float32)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + t * out_row + row, out, mask=real)


def _check(
    x_TH: Tensor, weight_OH: Tensor, bias_O: Tensor | None, residual_TO: Tensor | None, out_TO: Tensor | None
) -> tuple[int, int]:
    """T and O, or ValueError."""
    if x_TH.ndim != 2 or x_TH.dtype not in DTYPES or not _dense(x_TH):
        raise mismatch("gemv", "x_TH", "[tokens, inputs] in a 16- or 32-bit float, inputs dense", x_TH)
    num_tokens, num_inputs = x_TH.shape
    if num_tokens > GEMV_TOKENS:
        raise mismatch("gemv", "x_TH", f"{GEMV_TOKENS} tokens at most", x_TH)
    if weight_OH.ndim != 2 or weight_OH.shape[1] != num_inputs or not _dense(weight_OH):
        raise mismatch("gemv", "weight_OH", f"[outputs, {num_inputs}], inputs dense", weight_OH)
    num_outputs = len(weight_OH)
    shapes = {
        "bias_O": (num_outputs,),
        "residual_TO": (num_tokens, num_outputs),
        "out_TO": (num_tokens, num_outputs),
    }
    for name, tensor in zip(shapes, (bias_O, residual_TO, out_TO), strict=True):
        if tensor is not None and (tensor.shape != shapes[name] or not _dense(tensor)):
            raise mismatch("gemv", name, f"{list(shapes[name])}, outputs dense", tensor)
    for name, tensor in zip(("weight_OH", *shapes), (weight_OH, bias_O, residual_TO, out_TO), strict=True):
        if tensor is not None and (tensor.dtype != x_TH.dtype or tensor.device != x_TH.device):
            raise mismatch("gemv", name, f"{x_TH.dtype} on {x_TH.device}", tensor)
    return num_tokens, num_outputs


def _dense(tensor: Tensor) -> bool:
    return tensor.shape[-1] <= 1 or tensor.stride(-1) == 1
