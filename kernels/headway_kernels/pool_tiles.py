"""Tiles of K or V out of the page pool: rows gathered by pointer, or blocks by the copy engine.

Where a page holds whole tiles, Hopper's copy engine (TMA) fetches a tile as one box: no addresses to compute,
no registers to hold them. Measured on an H200, bf16, D 128, 32/8 heads, 8192 tokens: 499 against 401 TFLOP/s.

Dense keys [rows, kv_heads, D] are a pool whose pages of one row follow one another (DENSE): all that a
sequence needs of a table is its first row, and every tile lies whole, wherever the sequence begins.

Page numbers are to be read a tile ahead: a load that waits for another's result is what the compiler's
pipelining pays for with a stage (398 against 336 TFLOP/s, pages of 16).

Shape suffixes: N positions of a tile, D values of a head.
"""

import triton
import triton.language as tl
from torch import Tensor


def fits_boxes(rows: Tensor) -> bool:
    """Whether the copy engine takes rows [..., D]: there is one, and all begin at multiples of 16 bytes."""
    places = (rows.data_ptr(), *(stride * rows.itemsize for stride in rows.stride()[:-1]))
    return rows.numel() > 0 and all(place % 16 == 0 for place in places)


@triton.jit
def pages_of(table, position, there, PAGE: tl.constexpr, DENSE: tl.constexpr):
    """The page of each position that is there. `table` points to the sequence's page numbers; where these
    follow one another (DENSE) it is the first of them.
    """
    return table + position if DENSE else tl.load(table + position // PAGE, mask=there, other=0)


@triton.jit
def page_numbers(
    table,
    begin,
    end,
    PAGE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BOXES: tl.constexpr,
    DENSE: tl.constexpr,
):
    """The page of each position from `begin` on, up to `end`; of the tile as a whole where it is a box."""
    position = begin
    if not BOXES:
        position = begin + tl.arange(0, POSITIONS)
    return pages_of(table, position, position < end, PAGE, DENSE)


@triton.jit
def load_tile(
    ptr,
    box,
    page,
    begin,
    kv_head,
    page_stride,
    slot_stride,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    POSITIONS: tl.constexpr,
    BOXES: tl.constexpr,
    DENSE: tl.constexpr,
):
    """Positions that are all there -> [N, WIDE]. `ptr` is the KV head's; `box` describes [rows, D], or where
    DENSE [kv_heads, rows, D].
    """
    if BOXES and DENSE:
        tile_ND = box.load([kv_head, page, 0]).reshape(POSITIONS, WIDE)
    elif BOXES:
        tile_ND = box.load([(page * KV_HEADS + kv_head) * PAGE + begin % PAGE, 0])
    else:
        n_N = tl.arange(0, POSITIONS)
        d_D = tl.arange(0, WIDE)
        slot_N = (begin + n_N) % PAGE
        ptr_ND = ptr + (page.to(tl.int64) * page_stride + slot_N * slot_stride)[:, None] + d_D
        tile_ND = tl.load(ptr_ND) if D == WIDE else tl.load(ptr_ND, mask=(d_D < D)[None], other=0.0)
    return tile_ND


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
