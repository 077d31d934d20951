"""Attention of each sequence's newest tokens to its whole context in the page pool.

    out[t, q] = softmax_l(f(scale * q[t, q] . k[l, g(q)])) @ v[l, g(q)],  l <= position of t if causal

over sequences of different lengths, chunks of a prompt included: the keys of the chunk are in the pool
already. f caps (softcap) and lowers by distance (ALiBi); a window leaves out positions that are too far; a
sink is one more score without a value. Keys and values without pages: `flash_prefill_dense`.

The query heads of a KV head and the tokens of a sequence make up the rows of a tile together (row = token *
group + head), so a group of any size fills it, and the causal edge costs a tile or two. A program computes
one tile of rows: first the tiles of positions that need a mask, at the causal edge and at the window's, then
the steady part, which needs none. Layout: q, out [T, Q, D]; pools [pages, kv_heads, page_size, D], whose
tiles are fetched as `pool_tiles` says. Grid: (KV heads, tiles of rows), the latest rows first: they have the
most to do.

Source: FlashAttention-2 (arXiv 2307.08691); where a tile belongs is found as in vLLM's unified kernel.

Shape suffixes: as in `reference`; M rows and N positions of a tile.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from headway_kernels import debug
from headway_kernels.launch import (
    FUSED,
    bounds_tensor,
    capability,
    check_attention,
    check_starts,
    heads_of,
    precision,
)
from headway_kernels.online_softmax import LN_2, LOG2_E, first_step, last_step, shape_scores, softmax_step
from headway_kernels.pool_tiles import fits_boxes, load_tile, page_numbers, pages_of, sequence_of
from headway_kernels.repage import repage
from headway_kernels.tiles import Tiles, padded, tiles, worth_repaging


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

    lse_TQ: float32; filled with the natural logarithm of each row's sum of exponentials, sink included.
    tile: instead of what `tiles` chooses.
    check_values: look at lengths and page numbers too (`debug`), which waits for the device.
    Raises ValueError for tensors that do not fit each other.
    """
    num_tokens, _, head_dim = check_attention(
        "flash_prefill",
        q_TQD,
        k_pool,
        v_pool,
        table=page_table_SP,
        context_lens=context_lens_S,
        group_bounds=group_bounds,
        sinks=sinks_Q,
        slopes=alibi_slopes_Q,
        scale=scale,
        window=window,
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
    facts: dict[str, Any] = {
        "head_dim": head_dim,
        "dtype": q_TQD.dtype,
        "capability": capability(q_TQD.device),
    }
    if tile is None and worth_repaging(lengths, page_size=k_pool.shape[2], **facts):
        k_pool, v_pool, page_table_SP = repage(k_pool, v_pool, page_table_SP, query_starts, lengths)
    group = heads_of(group_bounds)
    tile = tile or tiles("flash_prefill", group=group, page_size=k_pool.shape[2], **facts)
    boxes = tile.boxes and all(pool.is_contiguous() and fits_boxes(pool) for pool in (k_pool, v_pool))
    launch_prefill(
        q_TQD,
        k_pool,
        v_pool,
        boxes=(box(k_pool, tile), box(v_pool, tile)) if boxes else None,
        table=page_table_SP,
        query_starts=query_starts,
        context_lens=context_lens_S,
        group_bounds=group_bounds,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
        sinks_Q=sinks_Q,
        alibi_slopes_Q=alibi_slopes_Q,
        out_TQD=out_TQD,
        lse_TQ=lse_TQ,
        tile=tile,
    )
    return out_TQD


def box(pool: Tensor, tile: Tiles) -> TensorDescriptor:
    """A pool as rows [pages * kv_heads * page_size, D], of which the copy engine takes a tile's at once."""
    head_dim = pool.shape[3]
    return TensorDescriptor.from_tensor(pool.view(-1, head_dim), [tile.positions, padded(head_dim)])


def launch_prefill(
    q_TQD: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    *,
    boxes: tuple[TensorDescriptor, TensorDescriptor] | None,
    table: Tensor,
    query_starts: Tensor,
    context_lens: Tensor | None,
    group_bounds: Sequence[int],
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks_Q: Tensor | None,
    alibi_slopes_Q: Tensor | None,
    out_TQD: Tensor,
    lse_TQ: Tensor | None,
    tile: Tiles,
) -> None:
    """Run the kernel over pages; without `context_lens` over dense rows, with `table` saying where sequences
    start, and end.
    """
    num_tokens, _, head_dim = q_TQD.shape
    num_seqs = len(query_starts) - 1
    k_box, v_box = boxes or (None, None)
    plain = softcap is None and alibi_slopes_Q is None
    num_tiles = num_tokens * heads_of(group_bounds) // tile.rows + num_seqs
    _prefill_kernel[(len(group_bounds) - 1, num_tiles)](
        q_TQD,
        k_pool,
        v_pool,
        k_box,
        v_box,
        out_TQD,
        lse_TQ,
        table,
        query_starts,
        context_lens,
        bounds_tensor(tuple(group_bounds), q_TQD.device),
        sinks_Q,
        alibi_slopes_Q,
        num_seqs,
        scale * LOG2_E.value if plain else scale,
        window or 0,
        softcap or 0.0,
        *q_TQD.stride()[:2],
        *out_TQD.stride()[:2],
        *k_pool.stride()[:3],
        *v_pool.stride()[:3],
        table.stride(0),
        0 if lse_TQ is None else lse_TQ.stride(0),
        KV_HEADS=k_pool.shape[1],
        PAGE=k_pool.shape[2],
        D=head_dim,
        WIDE=padded(head_dim),
        ROWS=tile.rows,
        POSITIONS=tile.positions,
        BOXES=boxes is not None,
        DENSE=context_lens is None,
        CAUSAL=causal,
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None,
        HAS_SINKS=sinks_Q is not None,
        HAS_ALIBI=alibi_slopes_Q is not None,
        HAS_LSE=lse_TQ is not None,
        PRECISION=precision(q_TQD.dtype),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **FUSED,
    )


@triton.jit(do_not_specialize=["num_seqs", "window", "table_row"])
def _prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_box,
    v_box,
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
    k_page,
    k_head,
    k_slot,
    v_page,
    v_head,
    v_slot,
    table_row,
    lse_token,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    BOXES: tl.constexpr,
    DENSE: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_LSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SHAPED: tl.constexpr = HAS_SOFTCAP or HAS_ALIBI
    EXACT: tl.constexpr = PRECISION == "ieee"
    fold = 1.0 if SHAPED else scale
    kv_head = tl.program_id(0)
    first_head = tl.load(bounds_ptr + kv_head)
    group = tl.load(bounds_ptr + kv_head + 1) - first_head
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    row = sequence_of(tile, query_starts_ptr, num_seqs, group, ROWS)
    start = tl.load(query_starts_ptr + row)
    num_queries = tl.load(query_starts_ptr + row + 1) - start
    if DENSE:
        table = tl.load(table_ptr + row)
        context_len = tl.load(table_ptr + row + 1) - table
    else:
        context_len = tl.load(context_lens_ptr + row)
    first_row = (tile - (start * group // ROWS + row)) * ROWS
    if first_row >= num_queries * group:
        return

    row_M = first_row + tl.arange(0, ROWS)
    token_M = row_M // group
    head_M = first_head + row_M % group
    real_M = token_M < num_queries
    before = context_len - num_queries  # tokens that were in the pool before this step's
    position_M = before + tl.minimum(token_M, num_queries - 1)
    d_D = tl.arange(0, WIDE)
    token_M = (start + token_M).to(tl.int64)
    q_MD = tl.load(
        q_ptr + token_M[:, None] * q_token + head_M[:, None] * q_head + d_D,
        mask=real_M[:, None] & (d_D < D),
        other=0.0,
    )
    slope_M = tl.load(slopes_ptr + head_M, mask=real_M, other=0.0) if HAS_ALIBI else None
    max_M, sum_M = first_step(sinks_ptr + head_M if HAS_SINKS else None, real_M, HAS_SINKS)
    acc_MD = tl.zeros((ROWS, WIDE), tl.float32)

    # The greatest position that some row sees, and the one up to which every row does.
    oldest = before + first_row // group
    newest = before + tl.minimum((first_row + ROWS - 1) // group, num_queries - 1)
    last, common = newest, oldest
    if not CAUSAL:
        last, common = context_len - 1, context_len - 1
        if HAS_WINDOW:
            last = tl.minimum(last, newest + window - 1)
            common = tl.minimum(common, oldest + window - 1)
    # Every row sees the tiles from `full` on (from 0 without a window) up to `edge`.
    edge = (common + 1) // POSITIONS * POSITIONS
    if DENSE:  # more queries than keys: the first ones stand before the first key
        edge = tl.maximum(edge, 0)
    low, full = 0, 0
    if HAS_WINDOW:
        low = tl.maximum(oldest - window + 1, 0) // POSITIONS * POSITIONS
        full = tl.maximum(newest - window + POSITIONS, 0) // POSITIONS * POSITIONS
        full = tl.minimum(full, edge)
    num_left = (full - low) // POSITIONS
    num_masked = num_left + (last - edge + POSITIONS) // POSITIONS

    if not DENSE:
        table = table_ptr + row.to(tl.int64) * table_row
    k_ptr += kv_head.to(tl.int64) * k_head
    v_ptr += kv_head.to(tl.int64) * v_head
    n_N = tl.arange(0, POSITIONS)
    for index in range(num_masked):
        begin = tl.where(index < num_left, low + index * POSITIONS, edge + (index - num_left) * POSITIONS)
        position_N = begin + n_N
        there_N = position_N <= last
        if HAS_WINDOW:
            there_N &= position_N > oldest - window
        page_N = pages_of(table, position_N, there_N, PAGE, DENSE).to(tl.int64)
        slot_N = position_N % PAGE
        there_ND = there_N[:, None] & (d_D < D)
        k_ND = tl.load(k_ptr + (page_N * k_page + slot_N * k_slot)[:, None] + d_D, mask=there_ND, other=0.0)
        score_MN = tl.dot(q_MD, k_ND.T, input_precision=PRECISION)
        distance_MN = position_M[:, None] - position_N
        if not CAUSAL:
            distance_MN = tl.abs(distance_MN)
        if SHAPED:
            score_MN = shape_scores(
                score_MN, distance_MN, scale, softcap, slope_M, HAS_SOFTCAP, HAS_ALIBI, EXACT
            )
        seen_MN = distance_MN >= 0 if CAUSAL else there_N[None]
        if HAS_WINDOW:
            seen_MN &= distance_MN < window
        score_MN = tl.where(seen_MN, score_MN, float("-inf"))
        v_ND = tl.load(v_ptr + (page_N * v_page + slot_N * v_slot)[:, None] + d_D, mask=there_ND, other=0.0)
        acc_MD, sum_M, max_M = softmax_step(acc_MD, sum_M, max_M, score_MN, v_ND, fold, PRECISION)

    page = page_numbers(table, full, edge, PAGE, POSITIONS, BOXES, DENSE)
    for begin in range(full, edge, POSITIONS):
        k_ND = load_tile(
            k_ptr,
            k_box,
            page,
            begin,
            kv_head,
            k_page,
            k_slot,
            KV_HEADS,
            PAGE,
            D,
            WIDE,
            POSITIONS,
            BOXES,
            DENSE,
        )
        v_ND = load_tile(
            v_ptr,
            v_box,
            page,
            begin,
            kv_head,
            v_page,
            v_slot,
            KV_HEADS,
            PAGE,
            D,
            WIDE,
            POSITIONS,
            BOXES,
            DENSE,
        )
        page = page_numbers(table, begin + POSITIONS, edge, PAGE, POSITIONS, BOXES, DENSE)
        score_MN = tl.dot(q_MD, k_ND.T, input_precision=PRECISION)
        if SHAPED:
            distance_MN = position_M[:, None] - begin - n_N
            if not CAUSAL:
                distance_MN = tl.abs(distance_MN)
            score_MN = shape_scores(
                score_MN, distance_MN, scale, softcap, slope_M, HAS_SOFTCAP, HAS_ALIBI, EXACT
            )
        acc_MD, sum_M, max_M = softmax_step(acc_MD, sum_M, max_M, score_MN, v_ND, fold, PRECISION)

    out_MD, lse_M = last_step(acc_MD, sum_M, max_M)
    tl.store(
        out_ptr + token_M[:, None] * out_token + head_M[:, None] * out_head + d_D,
        out_MD.to(out_ptr.dtype.element_ty),
        mask=real_M[:, None] & (d_D < D),
    )
    if HAS_LSE:
        tl.store(lse_ptr + token_M * lse_token + head_M, lse_M * LN_2, mask=real_M)
