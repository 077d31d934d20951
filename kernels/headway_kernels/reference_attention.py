"""What attention means, in plain PyTorch: over pages, over dense rows, of one token or many a sequence.

Nothing here waits for a GPU: whatever shapes depend on comes as Python integers.

Shape suffixes: as in `reference`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from headway_kernels.pool_rows import padded_rows, span_rows, take

DECODE_BYTES = 256 << 20  # that `paged_decode` gathers at once, unless one sequence takes more


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
) -> Tensor:
    """Attention of each sequence's newest tokens to its whole context in the pool -> out_TQD.

    lengths: (query tokens, context tokens with them) of each sequence, on the host; query_starts
        (int32, S + 1: cumulative query tokens) and context_lens_S (int32) say the same on the device,
        for kernels.
    page_table_SP: int32; entries that the window or the length leaves out are not read.
    group_bounds: the queries of KV head g are the heads from group_bounds[g] to group_bounds[g + 1].
    causal: whether a query sees no position behind its own; without it, it sees its whole context.
    window: positions that a query sees, its own included; None sees all. Without `causal` as many on either
        side: those less than `window` away (arXiv 2004.05150).
    softcap: scores become softcap * tanh(scores / softcap).
    alibi_slopes_Q: float32; a score of a position n away is lowered by n times its head's (arXiv 2108.12409).
    sinks_Q: of each head a score that takes its share of the softmax, and has no value.
    """
    out_TQD = torch.empty_like(q_TQD)
    start = 0
    for table_P, (num_queries, context_len) in zip(page_table_SP, lengths, strict=True):
        end = start + num_queries
        rows_GL = span_rows(table_P, k_pool, _first_seen(num_queries, context_len, window), context_len)
        _attend_context(
            q_TQD[start:end],
            take(k_pool, rows_GL),
            take(v_pool, rows_GL),
            out_TQD[start:end],
            context_len=context_len,
            group_bounds=group_bounds,
            scale=scale,
            causal=causal,
            window=window,
            softcap=softcap,
            sinks_Q=sinks_Q,
            alibi_slopes_Q=alibi_slopes_Q,
        )
        start = end
    return out_TQD


def flash_prefill_dense(
    q_TQD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    *,
    query_starts: Tensor,
    key_starts: Tensor,
    lengths: Sequence[tuple[int, int]],
    group_bounds: Sequence[int],
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
    alibi_slopes_Q: Tensor | None = None,
) -> Tensor:
    """Attention of packed queries to packed keys and values, sequence by sequence -> out_TQD.

    lengths: (query tokens, key tokens) of each sequence, on the host; query_starts and key_starts (int32,
        S + 1: cumulative tokens) say the same on the device, for kernels; one tensor does for both where
        queries and keys are the same tokens.
    The last query stands at the last key: where there are more queries than keys, the first ones stand before
        all of them. A query that sees nothing gives zeros. What else there is: as in `flash_prefill`.
    """
    out_TQD = torch.empty_like(q_TQD)
    start = key_start = 0
    for num_queries, context_len in lengths:
        end, key_end = start + num_queries, key_start + context_len
        seen = slice(key_start + _first_seen(num_queries, context_len, window), key_end)
        _attend_context(
            q_TQD[start:end],
            k_TGD[seen].transpose(0, 1),
            v_TGD[seen].transpose(0, 1),
            out_TQD[start:end],
            context_len=context_len,
            group_bounds=group_bounds,
            scale=scale,
            causal=causal,
            window=window,
            softcap=softcap,
            sinks_Q=sinks_Q,
            alibi_slopes_Q=alibi_slopes_Q,
        )
        start, key_start = end, key_end
    return out_TQD


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
    plan: None = None,
) -> Tensor:
    """Attention of each sequence's newest token, or newest few, to its context in the pool -> out_BQD.

    page_table_BP: int32, every entry within the pool; those behind a sequence's pages or before its window
        are of no effect. context_lens_B: int32, the newest token included.
    max_context_len: the longest of them, or any length above it that the table holds.
    num_queries: tokens of each sequence, side by side in q [B * num_queries, Q, D]; each sees the context up
        to itself. One before its sequence's start gives zeros.
    group_bounds and what follows it: as in `flash_prefill`. plan: of `plan_decode`.
    A batch whose padded context would take more than DECODE_BYTES is computed some sequences at a time.
    """
    options: dict[str, Any] = {
        "max_context_len": max_context_len,
        "group_bounds": group_bounds,
        "scale": scale,
        "window": window,
        "softcap": softcap,
        "sinks_Q": sinks_Q,
        "alibi_slopes_Q": alibi_slopes_Q,
    }
    if num_queries > 1:  # each token as a sequence that ends with it
        back = torch.arange(1 - num_queries, 1, dtype=torch.int32, device=q_BQD.device)
        lens_B = (context_lens_B[:, None] + back).clamp(min=0).flatten()
        table_BP = page_table_BP.repeat_interleave(num_queries, 0)
        out_BQD = paged_decode(
            q_BQD, k_pool, v_pool, page_table_BP=table_BP, context_lens_B=lens_B, **options
        )
        return out_BQD.masked_fill((lens_B == 0)[:, None, None], 0.0)
    _, num_kv_heads, _, head_dim = k_pool.shape
    a_row = _gathered_bytes(max_context_len, num_kv_heads, head_dim, k_pool.dtype)
    num_at_once = max(DECODE_BYTES // a_row, 1)
    if len(q_BQD) > num_at_once:
        pieces = [
            paged_decode(
                q_BQD[first : first + num_at_once],
                k_pool,
                v_pool,
                page_table_BP=page_table_BP[first : first + num_at_once],
                context_lens_B=context_lens_B[first : first + num_at_once],
                **options,
            )
            for first in range(0, len(q_BQD), num_at_once)
        ]
        return torch.cat(pieces)
    distance_B11L = None
    if len(q_BQD) == 1 and context_lens_B.is_cpu and alibi_slopes_Q is None:
        # nothing to pad, so nothing to mask
        length = int(context_lens_B[0])
        first = 0 if window is None else max(0, length - window)
        rows_BGL, mask_B11L = span_rows(page_table_BP[0], k_pool, first, length)[None], None
    else:
        rows_BGL, position_BL, visible_BL = padded_rows(
            page_table_BP, context_lens_B, k_pool, max_context_len, window
        )
        mask_B11L = visible_BL[:, None, None]
        distance_B11L = (position_BL + 1 - context_lens_B[:, None])[:, None, None]
    k_BGLD, v_BGLD = take(k_pool, rows_BGL), take(v_pool, rows_BGL)
    num_seqs, _, head_dim = q_BQD.shape
    parts = []
    for q_heads, kv_heads in _head_slices(group_bounds):
        num_groups = kv_heads.stop - kv_heads.start
        # The queries of a KV head take the place of a sequence of queries: nothing is expanded.
        out_BGND = _attend(
            q_BQD[:, q_heads].reshape(num_seqs, num_groups, -1, head_dim),
            k_BGLD[:, kv_heads],
            v_BGLD[:, kv_heads],
            mask_B11L,
            bias=_by_head(alibi_slopes_Q, q_heads, (num_groups, -1, 1), distance_B11L),
            scale=scale,
            softcap=softcap,
            sinks=_by_head(sinks_Q, q_heads, (num_groups, -1, 1)),
        )
        parts.append(out_BGND.reshape(num_seqs, -1, head_dim))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def merge(parts_KTQD: Tensor, lse_KTQ: Tensor) -> tuple[Tensor, Tensor]:
    """Partial attention results over K disjoint parts of a context, merged -> (out_TQD, lse_TQ).

    lse_KTQ: natural logarithm of each part's sum of exponentials; minus infinity for one that saw nothing,
        whose output then counts for nothing, whatever it holds (arXiv 2501.01005, section 2.2).
    """
    lse_TQ = lse_KTQ.logsumexp(0)
    weight_KTQ1 = (lse_KTQ - lse_TQ.where(lse_TQ.isfinite(), torch.zeros_like(lse_TQ))).exp()[..., None]
    parts_KTQD = parts_KTQD.where(weight_KTQ1 > 0, torch.zeros_like(parts_KTQD))
    return (parts_KTQD * weight_KTQ1).sum(0).to(parts_KTQD.dtype), lse_TQ


def plan_decode(context_lens_B: Tensor, **options: object) -> None:
    """What `paged_decode` may be told once a step for all its layers: here, nothing."""


def decode_bytes(
    *, num_seqs: int, context_len: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> int:
    """The most that `paged_decode` takes at once for `num_seqs` contexts as long as `context_len`."""
    a_row = _gathered_bytes(context_len, num_kv_heads, head_dim, dtype)
    return max(min(num_seqs * a_row, DECODE_BYTES), a_row)


def _gathered_bytes(context_len: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """What `paged_decode` gathers for one sequence: its keys, its values, and where they are."""
    return context_len * num_kv_heads * (2 * head_dim * dtype.itemsize + 16)


def _first_seen(num_queries: int, context_len: int, window: int | None) -> int:
    """The first position that any of a sequence's newest tokens sees."""
    return 0 if window is None else max(0, context_len - num_queries - window + 1)


def _attend_context(
    q_TQD: Tensor,
    k_GLD: Tensor,
    v_GLD: Tensor,
    out_TQD: Tensor,
    *,
    context_len: int,
    group_bounds: Sequence[int],
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks_Q: Tensor | None,
    alibi_slopes_Q: Tensor | None,
) -> None:
    """Fill `out_TQD` for the newest tokens of one sequence and the last keys and values of its context."""
    num_queries, num_seen = len(q_TQD), k_GLD.shape[1]
    if not num_queries or not context_len:
        out_TQD.zero_()
        return
    position = context_len - num_queries  # of the first query
    near = window is None or window >= max(context_len, num_queries)
    plain = softcap is None and sinks_Q is None and alibi_slopes_Q is None
    whole = near and plain and (position == 0 or not causal)
    key_L = torch.arange(context_len - num_seen, context_len, device=q_TQD.device)
    query_T1 = torch.arange(position, context_len, device=q_TQD.device)[:, None]
    unmasked = whole or (near and not causal)
    mask_TL = None if unmasked else _mask(key_L, query_T1, window, causal=causal)
    for q_heads, kv_heads in _head_slices(group_bounds):
        num_groups = kv_heads.stop - kv_heads.start
        q_GNTD = q_TQD[:, q_heads].reshape(num_queries, num_groups, -1, q_TQD.shape[2])
        q_GNTD = q_GNTD.permute(1, 2, 0, 3)
        k_GNLD = k_GLD[kv_heads, None].expand(-1, q_GNTD.shape[1], -1, -1)
        v_GNLD = v_GLD[kv_heads, None].expand(-1, q_GNTD.shape[1], -1, -1)
        if whole:
            out_GNTD = F.scaled_dot_product_attention(q_GNTD, k_GNLD, v_GNLD, is_causal=causal, scale=scale)
        else:
            nearness_TL = key_L - query_T1 if causal else -(key_L - query_T1).abs()
            out_GNTD = _attend(
                q_GNTD,
                k_GNLD,
                v_GNLD,
                mask_TL,
                bias=_by_head(alibi_slopes_Q, q_heads, (num_groups, -1, 1, 1), nearness_TL),
                scale=scale,
                softcap=softcap,
                sinks=_by_head(sinks_Q, q_heads, (num_groups, -1, 1, 1)),
            )
        out_TQD[:, q_heads] = out_GNTD.permute(2, 0, 1, 3).flatten(1, 2)
    if position < 0 and mask_TL is not None:  # queries before the first key may see nothing
        out_TQD.masked_fill_(~mask_TL.any(1)[:, None, None], 0.0)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of q [..., N, D] to k and v [..., L, D], where `mask` is true; `bias` is added to scores."""
    exact = torch.promote_types(q.dtype, torch.float32)
    if softcap is None and sinks is None and (bias is None or q.dtype == exact):
        if bias is not None:
            mask = bias.to(q.dtype) if mask is None else torch.where(mask, bias.to(q.dtype), -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = q.to(exact) @ k.to(exact).mT * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        sinks = sinks.to(exact).expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
    return (weights @ v.to(exact)).to(q.dtype)


def _by_head(
    of_Q: Tensor | None, heads: slice, shape: tuple[int, ...], factor: Tensor | None = None
) -> Tensor | None:
    """What each query head has, in `shape`, times `factor`."""
    if of_Q is None:
        return None
    return of_Q[heads].view(shape) if factor is None else of_Q[heads].view(shape) * factor


def _head_slices(bounds: Sequence[int]) -> list[tuple[slice, slice]]:
    """(query heads, KV heads) to be computed together: all of them, or one KV head at a time if ragged."""
    widths = {high - low for low, high in pairwise(bounds)}
    if len(widths) == 1:
        return [(slice(bounds[0], bounds[-1]), slice(0, len(bounds) - 1))]
    return [(slice(low, high), slice(g, g + 1)) for g, (low, high) in enumerate(pairwise(bounds))]


def _mask(key_L: Tensor, query_T1: Tensor, window: int | None, *, causal: bool) -> Tensor:
    """Which of the positions `key_L` the queries at `query_T1` see -> [T, L]."""
    if not causal:
        assert window is not None, "they see everything"
        return (key_L - query_T1).abs() < window
    mask_TL = key_L <= query_T1
    return mask_TL if window is None else mask_TL & (key_L > query_T1 - window)
