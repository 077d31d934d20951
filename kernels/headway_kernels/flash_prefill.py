"""Attention of each sequence's newest tokens to its whole context in the page pool.

    out[t, q] = softmax_l(f(scale * q[t, q] . k[l, g(q)])) @ v[l, g(q)],  l <= position of t if causal

over sequences of different lengths, chunks of a prompt included: the keys of the chunk are in the pool
already. f caps (softcap) and lowers by distance (ALiBi); a window leaves out positions that are too far; a
sink is one more score without a value. Keys and values without pages: `flash_prefill_dense`.

The query heads of a KV head and the tokens of a sequence make up the rows of a tile together (row = token *
group + head), so a group of any size fills it, and the causal edge costs a tile or two. A program computes
one tile of rows: first the tiles of positions that need a mask, at the causal edge and at the window's, then
the steady part, which needs none. Layout: q, out [T, Q, D]; pools [pages, kv_heads, page_size, D], gathered
by pointer. Grid: tiles of rows times KV heads, the latest rows first: they have the most to do.

This is the plain kernel, which runs everywhere; Hopper has one of its own (`hopper_prefill`).

Source: FlashAttention-2 (arXiv 2307.08691); where a tile belongs is found as in vLLM's unified kernel.

Shape suffixes: T tokens, Q query heads, D values of a head, S sequences, P pages of a table; M rows and N
positions of a tile. Masks: `real` rows are queries, `there` positions some row sees, `seen` pairs of both.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels import debug, hopper_prefill
from headway_kernels.hopper_boxes import takes
from headway_kernels.launch import (
    FUSED,
    capability,
    check_attention,
    check_starts,
    heads_of,
    precision,
)
from headway_kernels.online_softmax import LN_2, first_step, last_step, shape_scores, softmax_step
from headway_kernels.prefill_call import PrefillCall
from headway_kernels.prefill_tiles import begin_of, span_of, work_of
from headway_kernels.tiles import Tiles, padded, tiles, tiles_by_roles


def flash_prefill(
    q_TQD: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    *,
    page_table_SP: Tensor,
    query_starts: Tensor,
    context_lens_S: Tensor,
    lengths: Sequence[tuple[int, int]],
    group_bounds: Sequence[int],
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
    alibi_slopes_Q: Tensor | None = None,
    out_TQD: Tensor | None = None,
    lse_TQ: Tensor | None = None,
    tile: Tiles | None = None,
    check_values: bool = False,
) -> Tensor:
    """As `reference.flash_prefill` -> out_TQD, in the given tensor if there is one.

    lengths: (new tokens, tokens with them) of each sequence, on the host; here to check by.
    lse_TQ: float32; filled with the natural logarithm of each row's sum of exponentials, sink included.
    tile: instead of what `tiles` chooses.
    check_values: look at lengths and page numbers too (`debug`), which waits for the device.
    Raises ValueError for tensors that do not fit each other.
    """
    num_tokens, _, _ = check_attention(
        "flash_prefill",
        q_TQD,
        k_pool,
        v_pool,
        table=page_table_SP,
        context_lens=context_lens_S,
        num_seqs=len(lengths),
        group_bounds=group_bounds,
        sinks=sinks_Q,
        slopes=alibi_slopes_Q,
        scale=scale,
        window=window,
        softcap=softcap,
        out=out_TQD,
        lse=lse_TQ,
    )
    check_starts("flash_prefill", "query_starts", query_starts, lengths, q_TQD)
    if check_values:
        counts, contexts = ([pair[side] for pair in lengths] for side in (0, 1))
        debug.check_starts("flash_prefill", "query_starts", query_starts, counts, num_tokens)
        debug.check_lengths("flash_prefill", context_lens_S, contexts, at_least=counts)
        debug.check_pages("flash_prefill", page_table_SP, contexts, counts, pool=k_pool, window=window)
    out_TQD = torch.empty_like(q_TQD) if out_TQD is None else out_TQD
    if not num_tokens:
        return out_TQD
    call = PrefillCall(
        q=q_TQD,
        k=k_pool,
        v=v_pool,
        table=page_table_SP,
        query_starts=query_starts,
        context_lens=context_lens_S,
        group_bounds=group_bounds,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
        sinks=sinks_Q,
        slopes=alibi_slopes_Q,
        out=out_TQD,
        lse=lse_TQ,
    )
    launch_prefill(call, tile)
    return out_TQD


def launch_prefill(call: PrefillCall, tile: Tiles | None) -> None:
    """Run the kernel that fits best, or the one that `tile` is of."""
    head_dim = call.q.shape[2]
    suits = takes(call.q, call.k, call.v, paged=call.context_lens is not None)
    if suits and (tile is None or tile.groups):
        hopper_prefill.launch(call, tile or tiles_by_roles(head_dim))
        return
    if tile is not None and tile.groups:
        raise ValueError(
            "flash_prefill: tile must be one without groups: `hopper_prefill` does not take this"
        )
    tile = tile or tiles(
        "flash_prefill",
        head_dim=head_dim,
        group=heads_of(call.group_bounds),
        dtype=call.q.dtype,
        capability=capability(call.q.device),
    )
    num_kv_heads, num_tiles = call.num_tiles(tile.rows)
    _prefill_kernel[(num_kv_heads * num_tiles,)](
        *call.arguments(),
        num_kv_heads,
        call.k,
        call.v,
        *call.k.stride()[:3],
        *call.v.stride()[:3],
        PAGE=call.k.shape[2],
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


@triton.jit(do_not_specialize=["num_seqs", "window", "table_row", "num_kv_heads"])
def _prefill_kernel(
    q_ptr,
    out_ptr,
    lse_ptr,
    table_ptr,
    query_starts_ptr,
    context_lens_ptr,
    bounds_ptr,
    sinks_ptr,
    slopes_ptr,
    num_seqs,
    scale,
    window,
    softcap,
    q_token,
    q_head,
    out_token,
    out_head,
    table_row,
    lse_token,
    num_kv_heads,
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
    kv_head = tl.program_id(0) % num_kv_heads
    index = (tl.num_programs(0) - 1 - tl.program_id(0)) // num_kv_heads
    work = work_of(
        kv_head,
        index,
        query_starts_ptr,
        table_ptr,
        context_lens_ptr,
        bounds_ptr,
        num_seqs,
        ROWS,
        VARIANT.dense,
    )
    if work.first_row >= work.num_queries * work.group:
        return
    row_M = work.first_row + tl.arange(0, ROWS)
    query_M = row_M // work.group
    head_M = work.first_head + row_M % work.group
    real_M = query_M < work.num_queries
    position_M = work.context_len - work.num_queries + tl.minimum(query_M, work.num_queries - 1)
    d_D = tl.arange(0, WIDE)
    token_M = (work.start + query_M).to(tl.int64)
    real_MD = real_M[:, None] & (d_D < D)
    q_MD = tl.load(
        q_ptr + token_M[:, None] * q_token + head_M[:, None] * q_head + d_D, mask=real_MD, other=0.0
    )
    slope_M1 = tl.load(slopes_ptr + head_M, mask=real_M, other=0.0)[:, None] if VARIANT.alibi else None
    max_M, sum_M = first_step(sinks_ptr + head_M if VARIANT.sinks else None, real_M, VARIANT.sinks)
    acc_MD = tl.zeros((ROWS, WIDE), tl.float32)

    span = span_of(work, window, ROWS, VARIANT, POSITIONS)
    k_ptr += kv_head.to(tl.int64) * k_head
    v_ptr += kv_head.to(tl.int64) * v_head
    pages_ptr = table_ptr + work.sequence.to(tl.int64) * table_row
    for tile in range(span.num_tiles):
        position_N = begin_of(tile, span, POSITIONS) + tl.arange(0, POSITIONS)
        there_N = (position_N >= span.first) & (position_N <= span.last)
        if VARIANT.dense:
            page_N = (work.offset + position_N).to(tl.int64)
        else:
            page_N = tl.load(pages_ptr + position_N // PAGE, mask=there_N, other=0).to(tl.int64)
        slot_N = position_N % PAGE
        there_ND = there_N[:, None] & (d_D < D)
        k_ND = tl.load(k_ptr + (page_N * k_page + slot_N * k_slot)[:, None] + d_D, mask=there_ND, other=0.0)
        v_ND = tl.load(v_ptr + (page_N * v_page + slot_N * v_slot)[:, None] + d_D, mask=there_ND, other=0.0)
        score_MN = tl.dot(q_MD, k_ND.T, input_precision=PRECISION)
        distance_MN = position_M[:, None] - position_N
        if not VARIANT.causal:
            distance_MN = tl.abs(distance_MN)
        if SHAPED:
            score_MN = shape_scores(
                score_MN, distance_MN, scale, softcap, slope_M1, VARIANT.softcap, VARIANT.alibi, EXACT
            )
        if tile < span.num_masked:
            seen_MN = distance_MN >= 0 if VARIANT.causal else there_N[None]
            if VARIANT.window:
                seen_MN &= distance_MN < window
            score_MN = tl.where(seen_MN, score_MN, float("-inf"))
        acc_MD, sum_M, max_M = softmax_step(acc_MD, sum_M, max_M, score_MN, v_ND, fold, PRECISION)

    out_MD, lse_M = last_step(acc_MD, sum_M, max_M)
    tl.store(
        out_ptr + token_M[:, None] * out_token + head_M[:, None] * out_head + d_D,
        out_MD.to(out_ptr.dtype.element_ty),
        mask=real_MD,
    )
    if VARIANT.lse:
        tl.store(lse_ptr + token_M * lse_token + head_M, lse_M * LN_2, mask=real_M)
