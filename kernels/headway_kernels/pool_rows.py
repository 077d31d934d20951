"""Which rows of a pool sequences use, and taking them out: what the references gather before they compute.

A pool [pages, kv_heads, page_size, head_dim] is seen as rows of head_dim values.

Shape suffixes: B sequences, P pages of a table, G KV heads, L positions in a context, D values of a head.
"""

import torch
from torch import Tensor


def take(pool: Tensor, rows: Tensor) -> Tensor:
    """Rows of a pool seen as [pages * kv_heads * page_size, D], in the shape of `rows` and D behind."""
    head_dim = pool.shape[3]
    return pool.view(-1, head_dim).index_select(0, rows.reshape(-1)).view(*rows.shape, head_dim)


def _table_rows(page_table_BP: Tensor, pool: Tensor) -> Tensor:
    """The pool row of every KV head and position that the table covers -> [B, G, P * page_size]."""
    _, num_kv_heads, page_size, _ = pool.shape
    page_rows = num_kv_heads * page_size
    within = torch.arange(page_rows, dtype=page_table_BP.dtype, device=page_table_BP.device)
    rows = page_table_BP[:, None, :, None] * page_rows + within.view(num_kv_heads, 1, page_size)
    return rows.view(len(page_table_BP), num_kv_heads, -1)


def span_rows(table_P: Tensor, pool: Tensor, first: int, end: int) -> Tensor:
    """The pool rows of the positions from `first` to `end` of one sequence -> [G, end - first]."""
    page_size = pool.shape[2]
    page = first // page_size
    rows_GL = _table_rows(table_P[None, page : -(-end // page_size)], pool)[0]
    return rows_GL[:, first - page * page_size : end - page * page_size]


def padded_rows(
    page_table_BP: Tensor, context_lens_B: Tensor, pool: Tensor, max_context_len: int, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The pool rows of every sequence's visible positions, padded to one length, the positions, and which of
    them are visible.

    Padding points to a row of the sequence's own that is written: an unwritten one may hold NaN, which
    no weight of zero would silence.
    """
    page_size = pool.shape[2]
    num_pages = -(-max_context_len // page_size)
    lens_B1 = context_lens_B[:, None]
    if window is None or window >= max_context_len:
        rows_BGL = _table_rows(page_table_BP[:, :num_pages], pool)
        position_BL = torch.arange(rows_BGL.shape[2], device=pool.device)[None]
        visible_BL = position_BL < lens_B1
    else:
        num_pages = min(num_pages, (window + page_size - 2) // page_size + 1)  # a window may start mid-page
        page_B1 = (lens_B1 - window).clamp(min=0) // page_size
        index_BP = (page_B1 + torch.arange(num_pages, device=pool.device)).clamp(
            max=page_table_BP.shape[1] - 1
        )
        rows_BGL = _table_rows(page_table_BP.gather(1, index_BP.long()), pool)
        position_BL = page_B1 * page_size + torch.arange(rows_BGL.shape[2], device=pool.device)
        visible_BL = (position_BL < lens_B1) & (position_BL >= lens_B1 - window)
    rows_BGL = rows_BGL.where(visible_BL[:, None], rows_BGL[:, :, :1])
    return rows_BGL, position_BL, visible_BL
