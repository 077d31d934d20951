"""Who does what in the kernels for Hopper: one warp, the scheduler, leaves notes for all the others.

Of a decoding step it notes the pieces of the program's share (`decode_tiles`). Of prefill, tiles of rows are
dealt to the programs in turn, the latest first, for they take longest, and in every other
round the other way round, which evens out what the first programs have more to do. What a tile is takes
searches, loads and divisions, one after another: a multiplying group has no time for them.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from headway_kernels import decode_tiles, prefill_tiles
from headway_kernels.prefill_tiles import Span, Work

GROUP_ROWS = gl.constexpr(64)  # of a multiplying group: of the hardware's product
NOTES = gl.constexpr(3)  # on the board at once: the fetching warps are a tile ahead
WORK, SPAN = gl.constexpr(len(Work._fields)), gl.constexpr(len(Span._fields))
FIELDS = gl.constexpr(len(Work._fields) + len(Span._fields))  # of a note


class Lengths(NamedTuple):
    """What tells the tiles of rows."""

    query_starts: Any
    table: Any
    context_lens: Any
    bounds: Any
    num_seqs: Any
    window: Any
    num_kv_heads: Any
    num_tiles: Any  # of each KV head


class Board(NamedTuple):
    """Notes in shared memory, with two barriers each: written; read by all. In a place behind them is, for
    good, what the program began with.
    """

    notes: Any
    full: Any
    empty: Any


class Ring(NamedTuple):
    """Places [stages, N, D] for tiles of K or V, with two barriers each: landed; done with by all groups."""

    smem: Any
    full: Any
    empty: Any


work_of = gluon.jit(prefill_tiles.work_of.fn)
span_of = gluon.jit(prefill_tiles.span_of.fn)
begin_of = gluon.jit(prefill_tiles.begin_of.fn)
share_of = gluon.jit(decode_tiles.share_of.fn)
piece_of = gluon.jit(decode_tiles.piece_of.fn)


@gluon.jit
def write_notes(facts, board, ROWS: gl.constexpr, POSITIONS: gl.constexpr, VARIANT: gl.constexpr):
    """The warp that finds out: a note for all that the program has to do, and a last one without work."""
    if VARIANT.shares:
        num_written = _write_pieces(facts, board, ROWS, POSITIONS, VARIANT)
    else:
        num_written = _write_tiles(facts, board, ROWS, POSITIONS, VARIANT)
    _write(board, num_written, Work(0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0), Span(0, 0, 0, 0, 0, 0))


@gluon.jit
def _write_pieces(step, board, ROWS: gl.constexpr, POSITIONS: gl.constexpr, VARIANT: gl.constexpr):
    """A note for each piece of the program's share of a decoding step -> their number."""
    num_written = 0
    mine = share_of(step)
    while mine.done < mine.end:
        work, span, mine = piece_of(mine, step, ROWS, POSITIONS, VARIANT.window)
        if num_written == 0:
            _put(board, NOTES, work, span)
        _write(board, num_written, work, span)
        num_written += 1
    return num_written


@gluon.jit
def _write_tiles(lengths, board, ROWS: gl.constexpr, POSITIONS: gl.constexpr, VARIANT: gl.constexpr):
    """A note for each tile of rows of the program -> their number."""
    num_written = 0
    for index in range(gl.cdiv(lengths.num_tiles * lengths.num_kv_heads, gl.num_programs(0))):
        work, span = _round_of(index, lengths, ROWS, POSITIONS, VARIANT)
        if span.num_tiles > 0:
            _write(board, num_written, work, span)
            num_written += 1
    return num_written


@gluon.jit
def read_note(index, board):
    """(work, span) of note `index`."""
    place = index % NOTES
    mbarrier.wait(board.full.index(place), index // NOTES & 1)
    work, span = _got(board, place)
    mbarrier.arrive(board.empty.index(place), count=1)
    return work, span


@gluon.jit
def begun(board):
    """What the program began with, once a note of work has been read."""
    work, _ = _got(board, NOTES)
    return work


@gluon.jit
def _got(board, place):
    """(work, span) as they lie in a place."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    fields = joined((), gl.max(board.notes.index(place * FIELDS).load(layout), 0))
    for field in gl.static_range(1, WORK + SPAN):
        fields = joined(fields, gl.max(board.notes.index(place * FIELDS + field).load(layout), 0))
    work = Work(
        fields[0],
        fields[1],
        fields[2],
        fields[3],
        fields[4],
        fields[5],
        fields[6],
        fields[7],
        fields[8],
        fields[9],
        fields[10],
        fields[11],
    )
    return work, Span(fields[12], fields[13], fields[14], fields[15], fields[16], fields[17])


@gluon.jit
def token_of(row_M, group, SINGLE: gl.constexpr):
    """(token, head) of a KV head's rows. SINGLE: of one token, which needs no division: that is some 25
    instructions, and code that runs once a layer is as slow as its fetching.
    """
    if SINGLE:
        return (row_M >= group).to(gl.int32), row_M
    return row_M // group, row_M % group


@gluon.jit
def joined(those, one):
    """`those`, a tuple, and one more."""
    return those + (one,)  # noqa: RUF005 - the language has no star


@gluon.jit
def _round_of(index, lengths, ROWS: gl.constexpr, POSITIONS: gl.constexpr, VARIANT: gl.constexpr):
    """(work, span) of a round: without a tile where there is no work, and with one at least for rows that see
    nothing.
    """
    place = gl.program_id(0)
    place = gl.where(index % 2 == 0, place, gl.num_programs(0) - 1 - place)
    item = index * gl.num_programs(0) + place
    kv_head = item % lengths.num_kv_heads
    tile = lengths.num_tiles - 1 - item // lengths.num_kv_heads
    work = work_of(
        kv_head,
        tile,
        lengths.query_starts,
        lengths.table,
        lengths.context_lens,
        lengths.bounds,
        lengths.num_seqs,
        ROWS,
        VARIANT.dense,
    )
    span = span_of(work, lengths.window, ROWS, VARIANT, POSITIONS)
    there = (tile >= 0) & (work.first_row < work.num_queries * work.group)
    num_tiles = gl.where(there, gl.maximum(span.num_tiles, 1), 0)
    return work, Span(span.first, span.last, span.edge, span.num_newest, span.num_masked, num_tiles)


@gluon.jit
def _write(board, index, work, span):
    place = index % NOTES
    mbarrier.wait(board.empty.index(place), index // NOTES & 1 ^ 1)
    _put(board, place, work, span)
    mbarrier.arrive(board.full.index(place), count=1)


@gluon.jit
def _put(board, place, work, span):
    """Write them to a place, and tell nobody."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    for field in gl.static_range(WORK):
        board.notes.index(place * FIELDS + field).store(gl.full([1], work[field], gl.int32, layout))
    for field in gl.static_range(SPAN):
        board.notes.index(place * FIELDS + WORK + field).store(gl.full([1], span[field], gl.int32, layout))
