"""Which tile of rows a program of `flash_prefill` has, and which tiles of positions that takes.

Sequences' rows (row = token * group + head) follow one another in tiles of their own. Of the positions, first
come the tiles that need a mask, the newest ones at the causal edge and the oldest ones at the window's, then
the steady part, which every row sees whole.

Nothing here is read but lengths: a program searches and counts for itself, so a step needs no plan.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Work(NamedTuple):
    """A tile of rows. offset: the row of the keys where a sequence of dense ones begins. num_parts: of its
    result, each by a program, from number `first_program` on (`decode_tiles`); one part is all of it.
    num_mergers: the last of these programs, who begin with it.
    """

    kv_head: Any
    sequence: Any
    first_row: Any  # of the sequence's; at or past its last one where the tile is left over
    num_queries: Any
    start: Any  # the first query's token
    context_len: Any
    offset: Any
    first_head: Any
    group: Any  # query heads of the KV head
    first_program: Any
    num_parts: Any
    num_mergers: Any


class Span(NamedTuple):
    """The positions that a tile of rows sees."""

    first: Any  # position that some row sees
    last: Any
    edge: Any  # where the newest tiles begin, which not every row sees whole
    num_newest: Any
    num_masked: Any  # tiles, with those at the window's edge
    num_tiles: Any


@triton.jit
def work_of(
    kv_head,
    tile,
    query_starts_ptr,
    table_ptr,
    context_lens_ptr,
    bounds_ptr,
    num_seqs,
    ROWS: tl.constexpr,
    DENSE: tl.constexpr,
):
    """The rows of `tile`."""
    first_head = tl.load(bounds_ptr + kv_head)
    group = tl.load(bounds_ptr + kv_head + 1) - first_head
    row = sequence_of(tile, query_starts_ptr, num_seqs, group, ROWS)
    start = tl.load(query_starts_ptr + row)
    num_queries = tl.load(query_starts_ptr + row + 1) - start
    if DENSE:
        offset = tl.load(table_ptr + row)
        context_len = tl.load(table_ptr + row + 1) - offset
    else:
        offset = 0
        context_len = tl.load(context_lens_ptr + row)
    first_row = (tile - (start * group // ROWS + row)) * ROWS
    return Work(kv_head, row, first_row, num_queries, start, context_len, offset, first_head, group, 0, 1, 0)


@triton.jit
def sequence_of(tile, query_starts_ptr, num_seqs, group, ROWS: tl.constexpr):
    """The sequence that `tile` belongs to. Sequence s has its tiles from query_starts[s] * group // ROWS + s
    on: never less room than it needs, so neither a table nor a scan is needed.
    """
    low, high = num_seqs * 0, num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(query_starts_ptr + middle) * group // ROWS + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def span_of(work, window, ROWS: tl.constexpr, VARIANT: tl.constexpr, POSITIONS: tl.constexpr):
    """What `work` sees."""
    before = work.context_len - work.num_queries
    oldest = before + work.first_row // work.group
    newest = before + tl.minimum((work.first_row + ROWS - 1) // work.group, work.num_queries - 1)
    first, last, common = 0, newest, oldest
    if not VARIANT.causal:
        last, common = work.context_len - 1, work.context_len - 1
        if VARIANT.window:
            last = tl.minimum(last, newest + window - 1)
            common = tl.minimum(common, oldest + window - 1)
    edge = tl.maximum((common + 1) // POSITIONS * POSITIONS, 0)
    steady = 0
    if VARIANT.window:
        first = tl.maximum(oldest - window + 1, 0)
        steady = tl.maximum(newest - window + POSITIONS, 0) // POSITIONS * POSITIONS
        steady = tl.minimum(steady, edge)
    num_newest = tl.maximum(last - edge + POSITIONS, 0) // POSITIONS
    num_masked = num_newest + steady // POSITIONS - first // POSITIONS
    return Span(first, last, edge, num_newest, num_masked, num_masked + (edge - steady) // POSITIONS)


@triton.jit
def begin_of(index, span, POSITIONS: tl.constexpr):
    """The first position of tile `index`: the newest first, then the window's, then the others."""
    begin = span.edge - (index - span.num_masked + 1) * POSITIONS
    oldest = (span.first // POSITIONS + index - span.num_newest) * POSITIONS
    begin = tl.where(index < span.num_masked, oldest, begin)
    newest = span.edge + (span.num_newest - 1 - index) * POSITIONS
    return tl.maximum(tl.where(index < span.num_newest, newest, begin), 0)
