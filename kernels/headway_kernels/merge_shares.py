"""The end of a paged decode: sequences that several programs had shares of, merged by log-sum-exp.

Which programs had a share, and where each left its result, follows from the plan (`decode_plan`): shares are
equal, and a program keeps its first sequence's result in its slot 0 and its last one's in slot 1. What lay in
one share is written already. Sequences without a context get their zeros here: no program had a tile of them.

Layout: parts [2 W, rows, D] with lse [2 W, rows] -> out [B * num_queries, Q, D]. Grid:
(B * num_queries, KV heads, heads of the largest group / HEADS), so that no program searches for its KV head.

Shape suffixes: as in `reference`; K parts of a context, W programs, H heads that a program takes.
"""

import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.decode_plan import DecodePlan, share
from headway_kernels.launch import FUSED
from headway_kernels.merge import weigh
from headway_kernels.online_softmax import LN_2, LOWEST, last_step
from headway_kernels.tiles import merge_heads, padded

MERGED = 32  # parts that a program reads at a time, of all its heads


def merge_shares(
    plan: DecodePlan, out_BQD: Tensor, lse_BQ: Tensor | None, *, bounds: Tensor, sinks_Q: Tensor | None
) -> None:
    """Fill the rows of `out_BQD`, and of `lse_BQ`, that no program had the whole of.

    bounds: of the groups, on the device. The parts are counted with the sink, which is for empty contexts.
    """
    num_rows, _, head_dim = out_BQD.shape
    heads = merge_heads(num_rows * plan.num_kv_heads, plan.group)
    _merge_shares_kernel[(num_rows, plan.num_kv_heads, -(-plan.group // heads))](
        plan.parts,
        plan.lse,
        out_BQD,
        lse_BQ,
        plan.tile_starts,
        bounds,
        sinks_Q,
        len(plan.tile_starts) - 1,
        plan.num_kv_heads * plan.blocks,
        plan.num_programs,
        *out_BQD.stride()[:2],
        0 if lse_BQ is None else lse_BQ.stride(0),
        D=head_dim,
        WIDE=padded(head_dim),
        ROWS=plan.tile.rows,
        BLOCKS=plan.blocks,
        QUERIES=plan.num_queries,
        HEADS=heads,
        PARTS=MERGED // heads,
        HAS_SINKS=sinks_Q is not None,
        HAS_LSE=lse_BQ is not None,
        num_warps=4,
        **FUSED,
    )


@triton.jit(do_not_specialize=["num_seqs", "num_blocks", "num_programs"])
def _merge_shares_kernel(
    parts_ptr,
    parts_lse_ptr,
    out_ptr,
    lse_ptr,
    tile_starts_ptr,
    bounds_ptr,
    sinks_ptr,
    num_seqs,
    num_blocks,
    num_programs,
    out_row,
    out_head,
    lse_row,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """One token and `HEADS` query heads; nothing to do where their rows lie in one share."""
    token, kv_head = tl.program_id(0), tl.program_id(1)
    place_H = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    head_H = tl.load(bounds_ptr + kv_head) + place_H
    real_H = head_H < tl.load(bounds_ptr + kv_head + 1)  # a group may be smaller than the largest
    row = token // QUERIES
    d_D = tl.arange(0, WIDE)
    total = tl.load(tile_starts_ptr + num_seqs)
    start = tl.load(tile_starts_ptr + row)
    num_tiles = tl.load(tile_starts_ptr + row + 1) - start
    out_ptr_HD = out_ptr + token.to(tl.int64) * out_row + (head_H * out_head)[:, None] + d_D
    real_HD = real_H[:, None] & (d_D < D)
    if num_tiles == 0:
        tl.store(out_ptr_HD, tl.zeros((HEADS, WIDE), out_ptr.dtype.element_ty), mask=real_HD)
        if HAS_LSE:
            nothing_H = tl.full((HEADS,), float("-inf"), tl.float32)
            if HAS_SINKS:
                nothing_H = tl.load(sinks_ptr + head_H, mask=real_H).to(tl.float32)
            tl.store(lse_ptr + token * lse_row + head_H, nothing_H, mask=real_H)
        return
    within_H = place_H * QUERIES + token % QUERIES
    start_H = start + (kv_head * BLOCKS + within_H // ROWS) * total
    per = share(total * num_blocks, num_programs)
    first_H = start_H // per
    last_H = (start_H + num_tiles - 1) // per
    num_parts = tl.max(tl.where(real_H, last_H - first_H, 0), 0) + 1
    if num_parts == 1:
        return
    max_H, sum_H = tl.full((HEADS,), LOWEST, tl.float32), tl.full((HEADS,), 0.0, tl.float32)
    acc_HD = tl.zeros((HEADS, WIDE), tl.float32)
    for begin in range(0, num_parts, PARTS):
        worker_KH = first_H + begin + tl.arange(0, PARTS)[:, None]
        there_KH = (worker_KH <= last_H) & real_H
        # A share that begins before the sequence has it as its last piece, else as its first.
        slot_KH = 2 * worker_KH + (worker_KH * per < start_H).to(tl.int32)
        row_KH = slot_KH * ROWS + within_H % ROWS
        lse_KH = tl.load(parts_lse_ptr + row_KH, mask=there_KH, other=float("-inf"))
        part_KHD = tl.load(
            parts_ptr + row_KH[:, :, None] * D + d_D, mask=there_KH[:, :, None] & (d_D < D), other=0.0
        )
        weight_KH, keep_H, sum_H, max_H = weigh(lse_KH, sum_H, max_H)
        acc_HD = acc_HD * keep_H[:, None] + tl.sum(part_KHD * weight_KH[:, :, None], 0)
    out_HD, lse_H = last_step(acc_HD, sum_H, max_H)
    several_H = real_H & (first_H < last_H)
    tl.store(out_ptr_HD, out_HD.to(out_ptr.dtype.element_ty), mask=several_H[:, None] & (d_D < D))
    if HAS_LSE:
        tl.store(lse_ptr + token * lse_row + head_H, lse_H * LN_2, mask=several_H)
