"""What each operation means, in plain PyTorch: the CPU path, and what kernels are judged against.

A pool is [pages, kv_heads, page_size, head_dim]; a slot is one token's place: page * page_size + offset.
Nothing here waits for a GPU: whatever shapes depend on comes as Python integers.

Shape suffixes: T tokens of the step, B sequences that decode, S sequences that prefill, P pages of a table,
L positions in a context, Q query heads of this rank, G its KV heads, N query heads of one KV head,
D values of a head, R rotated ones, H hidden size, K parts of a context.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from headway_kernels.pool_rows import padded_rows, span_rows, take
from headway_kernels.reference_mlp import clamped_silu_mul as clamped_silu_mul
from headway_kernels.reference_mlp import gelu_mul as gelu_mul
from headway_kernels.reference_mlp import moe as moe
from headway_kernels.reference_mlp import route as route
from headway_kernels.reference_mlp import silu_mul as silu_mul

DECODE_BYTES = 256 << 20  # that `paged_decode` gathers at once, unless one sequence takes more


def rms_norm(
    x_TH: Tensor, weight_H: Tensor, eps: float, residual_TH: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Root mean square norm (arXiv 1910.07467) of `x_TH + residual_TH`; returns (normed, the sum).

    The sum is rounded to the dtype of x; its norm is computed in float32 at least. The weight may be wider
    than x. More dimensions may stand before H: queries and keys are normalised by head.
    """
    if residual_TH is not None:
        x_TH = x_TH + residual_TH
    if weight_H.dtype == x_TH.dtype:
        return F.rms_norm(x_TH, weight_H.shape, weight_H, eps), x_TH
    return F.rms_norm(x_TH.float(), weight_H.shape, weight_H, eps).to(x_TH.dtype), x_TH


def layer_norm(
    x_TH: Tensor,
    weight_H: Tensor,
    bias_H: Tensor | None,
    eps: float,
    residual_TH: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Layer norm (arXiv 1607.06450) of `x_TH + residual_TH`; returns (normed, the sum).

    The sum is rounded to the dtype of x; its norm is computed in float32 at least.
    """
    if residual_TH is not None:
        x_TH = x_TH + residual_TH
    return F.layer_norm(x_TH, weight_H.shape, weight_H, bias_H, eps), x_TH


def kv_write(
    q_TQD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    *,
    cos_TR: Tensor | None,
    sin_TR: Tensor | None,
    slots_T: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
) -> Tensor:
    """Rotate queries and keys by their positions, write keys and values to `slots_T`; return the queries.

    Without cosines and sines nothing is rotated.
    The first R values of a head turn in half-split pairs (i, i + R/2), as in Hugging Face checkpoints.
    `sin_TR` comes with its first half negated. `slots_T` (int64) must be distinct and within the pools.
    """
    page_size = k_pool.shape[2]
    page_T, offset_T = slots_T // page_size, slots_T % page_size
    if cos_TR is not None and sin_TR is not None:
        cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
        q_TQD, k_TGD = _rotate(q_TQD, cos_T1R, sin_T1R), _rotate(k_TGD, cos_T1R, sin_T1R)
    k_pool[page_T, :, offset_T] = k_TGD
    v_pool[page_T, :, offset_T] = v_TGD
    return q_TQD


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
    window: int | None = None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
    alibi_slopes_Q: Tensor | None = None,
) -> Tensor:
    """Causal attention of each sequence's newest tokens to its whole context in the pool -> out_TQD.

    lengths: (query tokens, context tokens with them) of each sequence, on the host; query_starts
        (int32, S + 1: cumulative query tokens) and context_lens_S (int32) say the same on the device,
        for kernels.
    page_table_SP: int32; entries that the window or the length leaves out are not read.
    group_bounds: the queries of KV head g are the heads from group_bounds[g] to group_bounds[g + 1].
    window: positions that a query sees, its own included; None sees all.
    softcap: scores become softcap * tanh(scores / softcap).
    alibi_slopes_Q: float32; a score of a position n back is lowered by n times its head's (arXiv 2108.12409).
    sinks_Q: of each head a score that takes its share of the softmax, and has no value.
    """
    out_TQD = torch.empty_like(q_TQD)
    plain = softcap is None and sinks_Q is None and alibi_slopes_Q is None
    start = 0
    for table_P, (num_queries, context_len) in zip(page_table_SP, lengths, strict=True):
        end = start + num_queries
        position = context_len - num_queries  # of the first query
        first = 0 if window is None else max(0, position - window + 1)
        rows_GL = span_rows(table_P, k_pool, first, context_len)
        k_GLD, v_GLD = take(k_pool, rows_GL), take(v_pool, rows_GL)
        whole = first == position == 0 and (window is None or window >= context_len) and plain
        key_L = torch.arange(first, context_len, device=q_TQD.device)
        query_T1 = torch.arange(position, context_len, device=q_TQD.device)[:, None]
        mask_TL = None if whole else _causal_mask(key_L, query_T1, window)
        for q_heads, kv_heads in _head_slices(group_bounds):
            num_groups = kv_heads.stop - kv_heads.start
            q_GNTD = q_TQD[start:end, q_heads].reshape(num_queries, num_groups, -1, q_TQD.shape[2])
            q_GNTD = q_GNTD.permute(1, 2, 0, 3)
            k_GNLD = k_GLD[kv_heads, None].expand(-1, q_GNTD.shape[1], -1, -1)
            v_GNLD = v_GLD[kv_heads, None].expand(-1, q_GNTD.shape[1], -1, -1)
            if whole:
                out_GNTD = F.scaled_dot_product_attention(q_GNTD, k_GNLD, v_GNLD, is_causal=True, scale=scale)
            else:
                out_GNTD = _attend(
                    q_GNTD,
                    k_GNLD,
                    v_GNLD,
                    mask_TL,
                    bias=_by_head(alibi_slopes_Q, q_heads, (num_groups, -1, 1, 1), key_L - query_T1),
                    scale=scale,
                    softcap=softcap,
                    sinks=_by_head(sinks_Q, q_heads, (num_groups, -1, 1, 1)),
                )
            out_TQD[start:end, q_heads] = out_GNTD.permute(2, 0, 1, 3).flatten(1, 2)
        start = end
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
    window: int | None = None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
    alibi_slopes_Q: Tensor | None = None,
    plan: None = None,
) -> Tensor:
    """Attention of one query a sequence, the newest token, to its context in the pool -> out_BQD.

    page_table_BP: int32, every entry within the pool; those behind a sequence's pages or before its window
        are of no effect. context_lens_B: int32, the newest token included.
    max_context_len: the longest of them, or any length above it that the table holds.
    group_bounds and what follows it: as in `flash_prefill`. plan: of `plan_decode`.
    A batch whose padded context would take more than DECODE_BYTES is computed some sequences at a time.
    """
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
                max_context_len=max_context_len,
                group_bounds=group_bounds,
                scale=scale,
                window=window,
                softcap=softcap,
                sinks_Q=sinks_Q,
                alibi_slopes_Q=alibi_slopes_Q,
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


def _rotate(x_TND: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    dim = cos_T1R.shape[-1]
    if dim < x_TND.shape[-1]:
        turned = _rotate(x_TND[..., :dim], cos_T1R, sin_T1R)
        return torch.cat((turned, x_TND[..., dim:]), -1)
    return torch.addcmul(x_TND * cos_T1R, x_TND.roll(dim // 2, -1), sin_T1R).to(x_TND.dtype)


def _head_slices(bounds: Sequence[int]) -> list[tuple[slice, slice]]:
    """(query heads, KV heads) to be computed together: all of them, or one KV head at a time if ragged."""
    widths = {high - low for low, high in pairwise(bounds)}
    if len(widths) == 1:
        return [(slice(bounds[0], bounds[-1]), slice(0, len(bounds) - 1))]
    return [(slice(low, high), slice(g, g + 1)) for g, (low, high) in enumerate(pairwise(bounds))]


def _causal_mask(key_L: Tensor, query_T1: Tensor, window: int | None) -> Tensor:
    """Which of the positions `key_L` the queries at `query_T1` see -> [T, L]."""
    mask_TL = key_L <= query_T1
    return mask_TL if window is None else mask_TL & (key_L > query_T1 - window)
