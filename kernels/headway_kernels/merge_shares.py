"""The end of a paged decode: sequences that several programs had shares of, merged by log-sum-exp.

Which programs had a share, and where each left its result, follows from the plan (`decode_tiles`). What lay
in one share is written already. The kernel for Hopper merges by itself (`hopper_merge`).

A sequence is cut where a share ends, so there are no more of them to merge than shares: of many sequences a
program looks after the cut where a share begins, if that is its sequence's first one; of few, after a
sequence. Launched while the decode still ran (programmatic dependent launch) this was no faster, and slower
by 9 us where one sequence is in all shares.

Layout: parts [2 W, rows, D] with lse [2 W, rows] -> out [B * num_queries, Q, D]. Grid: (W, or B *
kv_heads * blocks if they are fewer; a block's rows / TAKEN).

Shape suffixes: as in `reference`; K parts of a context, W programs, H rows that a program takes.
"""

import triton
import triton.language as tl

from headway_kernels.decode_call import DecodeCall
from headway_kernels.decode_plan import share
from headway_kernels.decode_tiles import parts_of, slot_of
from headway_kernels.launch import FUSED
from headway_kernels.merge import weigh
from headway_kernels.online_softmax import LN_2, first_step, last_step
from headway_kernels.tiles import MERGED, merge_rows, padded


def merge_shares(call: DecodeCall) -> None:
    """Fill the rows of the results that no program had the whole of."""
    plan, head_dim = call.plan, call.q.shape[2]
    num_rows = min(plan.tile.rows, plan.group * plan.num_queries)  # that a block has
    num_whole = plan.num_kv_heads * plan.blocks * len(call.context_lens)  # pieces, had they not been cut
    rows = merge_rows(num_rows, -(-plan.num_programs // num_whole) + 1)
    _merge_shares_kernel[(min(plan.num_programs, num_whole), -(-num_rows // rows))](
        plan.parts,
        plan.lse,
        call.out,
        call.lse,
        plan.tile_starts,
        plan.first_row,
        call.bounds,
        call.sinks,
        len(call.context_lens),
        plan.num_kv_heads,
        plan.blocks,
        plan.num_queries,
        plan.num_programs,
        *call.out.stride()[:2],
        0 if call.lse is None else call.lse.stride(0),
        D=head_dim,
        WIDE=padded(head_dim),
        ROWS=plan.tile.rows,
        TAKEN=rows,
        PARTS=MERGED // rows,
        BY_CUT=plan.num_programs <= num_whole,
        HAS_SINKS=call.sinks is not None,
        HAS_LSE=call.lse is not None,
        num_warps=4,
        **FUSED,
    )


@triton.jit(do_not_specialize=["num_seqs", "num_kv_heads", "num_blocks", "num_queries", "num_programs"])
def _merge_shares_kernel(
    parts_ptr,
    parts_lse_ptr,
    out_ptr,
    lse_ptr,
    tile_starts_ptr,
    first_row_ptr,
    bounds_ptr,
    sinks_ptr,
    num_seqs,
    num_kv_heads,
    num_blocks,
    num_queries,
    num_programs,
    out_row,
    out_head,
    lse_row,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    TAKEN: tl.constexpr,
    PARTS: tl.constexpr,
    BY_CUT: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """`TAKEN` rows of one sequence's block: of which one, the program's number says, or its cut."""
    index = tl.program_id(0)
    total = tl.load(tile_starts_ptr + num_seqs)
    each = share(total * num_kv_heads * num_blocks, num_programs)
    if BY_CUT:
        block = index * each // total
        row = tl.minimum(tl.load(first_row_ptr + index), num_seqs - 1)
    else:
        block, row = index // num_seqs, index % num_seqs
    kv_head = tl.minimum(block // num_blocks, num_kv_heads - 1)
    first_head = tl.load(bounds_ptr + kv_head)
    group = tl.load(bounds_ptr + kv_head + 1) - first_head
    row_start = tl.load(tile_starts_ptr + row)
    num_tiles = tl.load(tile_starts_ptr + row + 1) - row_start
    first, num_parts = parts_of(block * total + row_start, num_tiles, each)
    cut = (num_parts > 1) & (block < num_kv_heads * num_blocks)
    if BY_CUT:  # only the first cut of a sequence
        cut &= first == index - 1
    num_parts = tl.where(cut, num_parts, 0)

    part_row_H = tl.program_id(1) * TAKEN + tl.arange(0, TAKEN)
    row_H = block % num_blocks * ROWS + part_row_H
    head_H = first_head + row_H % group
    real_H = (row_H // group < num_queries) & (part_row_H < tl.where(cut, ROWS, 0))
    d_D = tl.arange(0, WIDE)
    # No part has counted the sink.
    max_H, sum_H = first_step(sinks_ptr + head_H if HAS_SINKS else None, real_H, HAS_SINKS)
    acc_HD = tl.zeros((TAKEN, WIDE), tl.float32)
    for begin in range(0, num_parts, PARTS):
        part_K = begin + tl.arange(0, PARTS)
        there_KH = (part_K < num_parts)[:, None] & real_H
        row_KH = slot_of(first, part_K)[:, None] * ROWS + part_row_H
        lse_KH = tl.load(parts_lse_ptr + row_KH, mask=there_KH, other=float("-inf"))
        part_KHD = tl.load(
            parts_ptr + row_KH[:, :, None] * D + d_D, mask=there_KH[:, :, None] & (d_D < D), other=0.0
        )
        weight_KH, keep_H, sum_H, max_H = weigh(lse_KH, sum_H, max_H)
        acc_HD = acc_HD * keep_H[:, None] + tl.sum(part_KHD * weight_KH[:, :, None], 0)
    out_HD, lse_H = last_step(acc_HD, sum_H, max_H)
    token_H = (row * num_queries + row_H // group).to(tl.int64)
    out_ptr_HD = out_ptr + (token_H * out_row + head_H * out_head)[:, None] + d_D
    tl.store(out_ptr_HD, out_HD.to(out_ptr.dtype.element_ty), mask=real_H[:, None] & (d_D < D))
    if HAS_LSE:
        tl.store(lse_ptr + token_H * lse_row + head_H, lse_H * LN_2, mask=real_H)
