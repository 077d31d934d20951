"""Rows multiplied by the weights of their expert: one matrix product of many, in one launch.

    out[p] = (weight[e] @ a[p // share] + bias[e]) * scale[p],  e being the expert of pair p

Each block of pairs (`expert_blocks`) and tile of columns is a program, which gathers the rows of `a` that the
block's pairs ask for. Sums and what follows them are float32. Layout: a [P / share, D], weight [E, N, D],
out [P, N]. Grid: blocks * tiles of columns, blocks fastest within groups of `TOGETHER`, so that blocks of an
expert read the same weights at the same time. Blocks that nobody needs end at once.

Source: the fused_moe of vLLM and SGLang; the order of programs, Triton's tutorial on matrix products.

Shape suffixes: P pairs, E experts, M rows and N columns, D depth: what is summed over.
"""

from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.expert_blocks import ExpertBlocks
from headway_kernels.launch import FUSED, capability, precision
from headway_kernels.tiles_matmul import GroupedTiles, grouped_tiles

TOGETHER = 8
UNIT = 16  # values; the largest divisor of all rows that is told to the compiler, which loads no wider


def grouped_matmul(
    blocks: ExpertBlocks,
    a: Tensor,
    weight_END: Tensor,
    bias_EN: Tensor | None,
    out_PN: Tensor,
    *,
    share: int = 1,
    scale_P: Tensor | None = None,
) -> None:
    """Fill out_PN, contiguous, from a [P / share, D] and the weights of E experts.

    a, weight_END and bias_EN are dense in their last dimension; scale_P: float32, contiguous.
    """
    _, num_columns, depth = weight_END.shape
    if not num_columns:
        return
    unit, tile = unit_and_tile(weight_END, a_row=a.stride(0), num_blocks=len(blocks), rows=blocks.rows)
    _grouped_kernel[(len(blocks) * triton.cdiv(num_columns, tile.columns),)](
        a,
        weight_END,
        bias_EN,
        scale_P,
        out_PN,
        blocks.pairs,
        blocks.experts,
        len(blocks),
        num_columns,
        depth // unit,
        a.stride(0) // unit,
        weight_END.stride(0) // unit,
        weight_END.stride(1) // unit,
        0 if bias_EN is None else bias_EN.stride(0),
        UNIT=unit,
        SHARE=share,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        WHOLE=depth % tile.depth == 0,
        TOGETHER=TOGETHER,
        HAS_BIAS=bias_EN is not None,
        HAS_SCALE=scale_P is not None,
        PRECISION=precision(a.dtype),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **FUSED,
    )


def unit_and_tile(weight_END: Tensor, *, a_row: int, num_blocks: int, rows: int) -> tuple[int, GroupedTiles]:
    """What divides all rows' lengths, and the tile of the product."""
    _, num_columns, depth = weight_END.shape
    unit = gcd(UNIT, depth, a_row, weight_END.stride(0), weight_END.stride(1))
    tile = grouped_tiles(
        num_blocks=num_blocks,
        rows=rows,
        num_columns=num_columns,
        unit=unit,
        dtype=weight_END.dtype,
        capability=capability(weight_END.device),
    )
    return unit, tile


@triton.jit(do_not_specialize=["num_blocks"])
def _grouped_kernel(
    a_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    out_ptr,
    pairs_ptr,
    block_experts_ptr,
    num_blocks,
    num_columns,
    depth,
    a_row,
    weight_expert,
    weight_row,
    bias_expert,
    UNIT: tl.constexpr,
    SHARE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
    TOGETHER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    depth *= UNIT
    in_group = TOGETHER * tl.cdiv(num_columns, COLUMNS)
    group = tl.program_id(0) // in_group
    together = tl.minimum(num_blocks - group * TOGETHER, TOGETHER)
    within = tl.program_id(0) % in_group
    block = group * TOGETHER + within % together
    expert = tl.load(block_experts_ptr + block).to(tl.int64)
    m_M = tl.arange(0, ROWS)
    pair_M = tl.load(pairs_ptr + block * ROWS + m_M)
    if expert < 0:
        return
    real_M = pair_M >= 0
    n_N = within // together * COLUMNS + tl.arange(0, COLUMNS)
    real_N = n_N < num_columns
    d_D = tl.arange(0, DEPTH)
    # Columns behind the last are the last one again: a mask would be looked at in every step.
    column_N = tl.minimum(n_N, num_columns - 1)
    a_MD = a_ptr + (pair_M // SHARE).to(tl.int64)[:, None] * a_row * UNIT + d_D
    weight_ND = weight_ptr + expert * weight_expert * UNIT + column_N[:, None] * weight_row * UNIT + d_D
    acc_MN = tl.zeros((ROWS, COLUMNS), tl.float32)
    for done in range(0, depth, DEPTH):
        if WHOLE:
            a = tl.load(a_MD, mask=real_M[:, None], other=0.0)
            weight = tl.load(weight_ND)
        else:
            left_D = d_D < depth - done
            a = tl.load(a_MD, mask=real_M[:, None] & left_D, other=0.0)
            weight = tl.load(weight_ND, mask=left_D[None], other=0.0)
        acc_MN = tl.dot(a, weight.T, acc_MN, input_precision=PRECISION)
        a_MD += DEPTH
        weight_ND += DEPTH
    if HAS_BIAS:
        acc_MN += tl.load(bias_ptr + expert * bias_expert + n_N, mask=real_N, other=0.0).to(tl.float32)
    if HAS_SCALE:
        acc_MN *= tl.load(scale_ptr + pair_M, mask=real_M, other=0.0)[:, None]
    out_MN = out_ptr + pair_M.to(tl.int64)[:, None] * num_columns + n_N
    tl.store(out_MN, acc_MN.to(out_ptr.dtype.element_ty), mask=real_M[:, None] & real_N)
