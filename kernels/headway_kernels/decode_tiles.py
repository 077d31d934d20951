"""Which piece of a step's decoding a program has, and which tiles of positions that takes.

A program's share of all tiles (`decode_plan`) falls into pieces, each of one sequence and one KV head. A
piece that is all of its sequence's tiles is its result; the others are parts of it, to be merged, which
programs that follow one another have.

Rows are those of prefill: row = token * group + head.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from headway_kernels.decode_plan import share
from headway_kernels.prefill_tiles import Span, Work


class Step(NamedTuple):
    """What tells the pieces."""

    tile_starts: Any
    first_row: Any
    context_lens: Any
    bounds: Any
    num_seqs: Any
    num_kv_heads: Any
    num_blocks: Any  # of rows that a KV head's queries make
    num_queries: Any  # of each sequence
    window: Any


class Share(NamedTuple):
    """What is left of a program's tiles, [done, end), and the sequence they go on with."""

    each: Any  # that a program has
    done: Any
    end: Any
    row: Any


@triton.jit
def share_of(step):
    """The program's whole share."""
    total = tl.load(step.tile_starts + step.num_seqs) * step.num_kv_heads * step.num_blocks
    each = share(total, tl.num_programs(0))
    first = tl.program_id(0) * each
    row = tl.load(step.first_row + tl.program_id(0))
    return Share(each, first, tl.minimum(first + each, total), row)


@triton.jit
def piece_of(mine, step, ROWS: tl.constexpr, POSITIONS: tl.constexpr, WINDOW: tl.constexpr):
    """(work, span, share without it) of the next piece; WINDOW: whether there is one."""
    total = tl.load(step.tile_starts + step.num_seqs)
    block = mine.done // total
    place = mine.done - block * total
    row = tl.where(place == 0, 0, mine.row)
    row_start = tl.load(step.tile_starts + row)
    num_tiles = tl.load(step.tile_starts + row + 1) - row_start
    first = place - row_start
    last = tl.minimum(num_tiles, first + mine.end - mine.done)
    start = block * total + row_start
    first_program, num_parts = parts_of(start, num_tiles, mine.each)
    num_mergers = num_parts - (start % mine.each > 0).to(tl.int32)

    context_len, queries = tl.load(step.context_lens + row), step.num_queries
    kv_head = block // step.num_blocks
    first_head = tl.load(step.bounds + kv_head)
    group = tl.load(step.bounds + kv_head + 1) - first_head
    first_row = block % step.num_blocks * ROWS
    work = Work(
        kv_head,
        row,
        first_row,
        queries,
        row * queries,
        context_len,
        0,
        first_head,
        group,
        first_program,
        num_parts,
        num_mergers,
    )

    oldest, steady = 0, 0
    if WINDOW:
        oldest = tl.maximum(context_len - (queries - 1) - step.window, 0)
        steady = tl.maximum(context_len - 1 - step.window + POSITIONS, 0) // POSITIONS * POSITIONS
    begin = (oldest // POSITIONS + first) * POSITIONS
    stop = (oldest // POSITIONS + last) * POSITIONS
    edge = tl.maximum(context_len - queries + 1, 0) // POSITIONS * POSITIONS
    edge = tl.minimum(tl.maximum(edge, begin), stop)
    steady = tl.minimum(tl.maximum(steady, begin), edge)
    num_newest = (stop - edge) // POSITIONS
    num_masked = num_newest + (steady - begin) // POSITIONS
    span = Span(
        tl.maximum(oldest, begin),
        tl.minimum(stop, context_len) - 1,
        edge,
        num_newest,
        num_masked,
        last - first,
    )
    return work, span, Share(mine.each, mine.done + last - first, mine.end, row + 1)


@triton.jit
def parts_of(first, num_tiles, each):
    """(first program, programs) that tiles from `first` on are shared by, if each program has so many."""
    program = first // each
    return program, (first + num_tiles - 1) // each - program + 1


@triton.jit
def slot_of(first_program, part):
    """Where part number `part` of a sequence lies: a program goes on with one in its place 0, and begins the
    next one that is cut in its place 1.
    """
    return 2 * (first_program + part) + (part == 0).to(tl.int32)
