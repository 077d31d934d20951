"""Attention of the newest token of each sequence, or the newest few, to its context in the page pool.

    out[b, q] = softmax_l(f(scale * q[b, q] . k[l, g(q)])) @ v[l, g(q)],  l <= position of b

Memory-bound: K and V are read once, so a KV head's query heads, each with all of its tokens, are the rows of
one tile (row = token * group + head): 16 at least, what a matrix product takes. A persistent grid takes
equal shares of all tiles of positions (`decode_plan`, `decode_tiles`). A sequence that lies in one share is
written at once; the others leave partial results, to be merged: here by a second kernel (`merge_shares`).
Layout: q, out [B * num_queries, Q, D]; pools [pages, kv_heads, page_size, D], gathered by pointer; the next
tile's page numbers are read a tile ahead. This is the plain kernel, which runs everywhere; Hopper has one of
its own (`hopper_decode`), which merges by itself. Grid: a multiple of the multiprocessors; then that of the
merge.

Source: flash decoding (arXiv 2311.01282, split over the sequence), FlashInfer (arXiv 2501.01005, plan and
run), Stream-K (arXiv 2301.03598, equal shares).

Shape suffixes: as in `reference`; M rows and N positions of a tile.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels import debug, hopper_decode
from headway_kernels.decode_call import DecodeCall
from headway_kernels.decode_plan import DecodePlan, plan_decode
from headway_kernels.decode_tiles import Step, piece_of, share_of, slot_of
from headway_kernels.hopper_boxes import takes
from headway_kernels.launch import FUSED, check_attention, check_num_queries, heads_of, precision
from headway_kernels.merge_shares import merge_shares
from headway_kernels.online_softmax import (
    LN_2,
    LOWEST,
    first_step,
    last_step,
    shape_scores,
    softmax_step,
)
from headway_kernels.pool_tiles import pages_between, slots_of
from headway_kernels.tiles import padded


def paged_decode(
    q_BQD: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    *,
    page_table_BP: Tensor,
    context_lens_B: Tensor,
    max_context_len: int,
    group_bounds: Sequence[int],
    scale: float,
    num_queries: int = 1,
    window: int | None = None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
    alibi_slopes_Q: Tensor | None = None,
    plan: DecodePlan | None = None,
    out_BQD: Tensor | None = None,
    lse_BQ: Tensor | None = None,
    check_values: bool = False,
) -> Tensor:
    """As `reference.paged_decode` -> out_BQD, in the given tensor if there is one.

    max_context_len: of `context_lens_B`; what the reference gathers at once, here a bound to check by.
    plan: of this step, for this window and as many queries; made here if it is not given. A query that sees
        nothing, before its sequence's start, gives zeros.
    lse_BQ: float32; filled with the natural logarithm of each row's sum of exponentials, sink included.
    check_values: look at lengths, plan and page numbers too (`debug`), which waits for the device.
    Raises ValueError for tensors that do not fit each other.
    """
    num_seqs = len(context_lens_B)
    num_rows, _, head_dim = check_attention(
        "paged_decode",
        q_BQD,
        k_pool,
        v_pool,
        table=page_table_BP,
        context_lens=context_lens_B,
        num_seqs=num_seqs,
        group_bounds=group_bounds,
        sinks=sinks_Q,
        slopes=alibi_slopes_Q,
        scale=scale,
        window=window,
        softcap=softcap,
        out=out_BQD,
        lse=lse_BQ,
    )
    check_num_queries("paged_decode", num_queries, num_seqs, q_BQD)
    step: dict[str, Any] = {
        "num_kv_heads": k_pool.shape[1],
        "group": heads_of(group_bounds),
        "head_dim": head_dim,
        "dtype": q_BQD.dtype,
        "num_queries": num_queries,
        "window": window,
    }
    if plan is None:
        plan = plan_decode(context_lens_B, **step)
    plan.check(num_seqs=num_seqs, device=q_BQD.device, **step)
    if check_values:
        lengths, queries = context_lens_B.tolist(), [num_queries] * num_seqs
        debug.check_pages(
            "paged_decode",
            page_table_BP,
            lengths,
            queries,
            pool=k_pool,
            window=window,
            max_context_len=max_context_len,
        )
        debug.check_plan("paged_decode", plan, lengths)
    out_BQD = torch.empty_like(q_BQD) if out_BQD is None else out_BQD
    if not num_rows:
        return out_BQD
    call = DecodeCall(
        q=q_BQD,
        k_pool=k_pool,
        v_pool=v_pool,
        table=page_table_BP,
        context_lens=context_lens_B,
        plan=plan,
        group_bounds=group_bounds,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks_Q,
        slopes=alibi_slopes_Q,
        out=out_BQD,
        lse=lse_BQ,
    )
    if plan.tile.groups and takes(q_BQD, k_pool, v_pool, paged=True):
        hopper_decode.launch(call)
    else:
        _launch(call)
        merge_shares(call)
    return out_BQD


def _launch(call: DecodeCall) -> None:
    """Run the plain kernel."""
    tile, head_dim = call.plan.tile, call.q.shape[2]
    if tile.groups:  # planned for roles, and not taken: as many warps as such rows and positions need
        tile = replace(tile, groups=0, num_warps=8, num_stages=2)
    _decode_kernel[(call.plan.num_programs,)](
        *call.arguments(),
        call.k_pool,
        call.v_pool,
        *call.k_pool.stride()[:3],
        *call.v_pool.stride()[:3],
        PAGE=call.k_pool.shape[2],
        D=head_dim,
        WIDE=padded(head_dim),
        ROWS=tile.rows,
        POSITIONS=tile.positions,
        VARIANT=call.variant,
        PRECISION=precision(call.q.dtype),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **FUSED,
    )


def decode_bytes(**shape: object) -> int:
    """As `reference.decode_bytes`: nothing, for pages are read where they lie.

    What a plan takes for partial results depends on the device alone, so any step shows it.
    """
    return 0


@triton.jit(
    do_not_specialize=["num_seqs", "num_kv_heads", "num_blocks", "num_queries", "window", "table_row"]
)
def _decode_kernel(
    q_ptr,
    out_ptr,
    lse_ptr,
    parts_ptr,
    parts_lse_ptr,
    table_ptr,
    context_lens_ptr,
    tile_starts_ptr,
    first_row_ptr,
    bounds_ptr,
    sinks_ptr,
    slopes_ptr,
    num_seqs,
    num_kv_heads,
    num_blocks,
    num_queries,
    scale,
    window,
    softcap,
    q_row,
    q_head,
    out_row,
    out_head,
    table_row,
    lse_row,
    k_ptr,
    v_ptr,
    k_page,
    k_head,
    k_slot,
    v_page,
    v_head,
    v_slot,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    VARIANT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SHAPED: tl.constexpr = VARIANT.softcap or VARIANT.alibi
    EXACT: tl.constexpr = PRECISION == "ieee"
    fold = 1.0 if SHAPED else scale
    step = Step(
        tile_starts_ptr,
        first_row_ptr,
        context_lens_ptr,
        bounds_ptr,
        num_seqs,
        num_kv_heads,
        num_blocks,
        num_queries,
        window,
    )
    n_N = tl.arange(0, POSITIONS)
    d_D = tl.arange(0, WIDE)
    m_M = tl.arange(0, ROWS)
    mine = share_of(step)
    while mine.done < mine.end:
        work, span, mine = piece_of(mine, step, ROWS, POSITIONS, VARIANT.window)
        row_M = work.first_row + m_M
        query_M = row_M // work.group
        head_M = work.first_head + row_M % work.group
        real_M = query_M < num_queries
        real_MD = real_M[:, None] & (d_D < D)
        token_M = (work.start + query_M).to(tl.int64)
        q_ptr_MD = q_ptr + (token_M * q_row + head_M * q_head)[:, None] + d_D
        q_MD = tl.load(q_ptr_MD, mask=real_MD, other=0.0)
        slope_M1 = tl.load(slopes_ptr + head_M, mask=real_M, other=0.0)[:, None] if VARIANT.alibi else None
        max_M, sum_M = first_step(sinks_ptr + head_M if VARIANT.sinks else None, real_M, VARIANT.sinks)
        if VARIANT.sinks:  # the merge counts a sink once for all parts
            max_M = tl.where(work.num_parts == 1, max_M, LOWEST)
            sum_M = tl.where(work.num_parts == 1, sum_M, 0.0)
        acc_MD = tl.zeros((ROWS, WIDE), tl.float32)
        position_M = work.context_len - num_queries + query_M

        pages = table_ptr + work.sequence.to(tl.int64) * table_row
        keys = k_ptr + work.kv_head.to(tl.int64) * k_head
        values = v_ptr + work.kv_head.to(tl.int64) * v_head
        begin, stop = span.first // POSITIONS * POSITIONS, span.last + 1
        page_N = pages_between(pages, begin, span.first, stop, PAGE, POSITIONS)
        for position in range(begin, stop, POSITIONS):
            position_N = position + n_N
            there_N = (position_N >= span.first) & (position_N < stop)
            there_ND = there_N[:, None] & (d_D < D)
            slot_N = slots_of(position, PAGE, POSITIONS)
            long_page_N = page_N.to(tl.int64)
            k_ND = tl.load(
                keys + (long_page_N * k_page + slot_N * k_slot)[:, None] + d_D, mask=there_ND, other=0.0
            )
            v_ND = tl.load(
                values + (long_page_N * v_page + slot_N * v_slot)[:, None] + d_D, mask=there_ND, other=0.0
            )
            page_N = pages_between(pages, position + POSITIONS, span.first, stop, PAGE, POSITIONS)
            score_MN = tl.dot(q_MD, k_ND.T, input_precision=PRECISION)
            distance_MN = position_M[:, None] - position_N[None]
            seen_MN = there_N[None] & (distance_MN >= 0)
            if VARIANT.window:
                seen_MN &= distance_MN < window
            if SHAPED:
                score_MN = shape_scores(
                    score_MN, distance_MN, scale, softcap, slope_M1, VARIANT.softcap, VARIANT.alibi, EXACT
                )
            score_MN = tl.where(seen_MN, score_MN, float("-inf"))
            acc_MD, sum_M, max_M = softmax_step(acc_MD, sum_M, max_M, score_MN, v_ND, fold, PRECISION)

        out_MD, lse_M = last_step(acc_MD, sum_M, max_M)
        if work.num_parts == 1:
            out_ptr_MD = out_ptr + (token_M * out_row + head_M * out_head)[:, None] + d_D
            tl.store(out_ptr_MD, out_MD.to(out_ptr.dtype.element_ty), mask=real_MD)
            if VARIANT.lse:
                tl.store(lse_ptr + token_M * lse_row + head_M, lse_M * LN_2, mask=real_M)
        else:
            slot = slot_of(work.first_program, tl.program_id(0) - work.first_program)
            part_M = slot * ROWS + m_M
            tl.store(parts_ptr + part_M[:, None] * D + d_D, out_MD, mask=real_MD)
            tl.store(parts_lse_ptr + part_M, lse_M, mask=real_M)
