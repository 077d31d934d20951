"""Where the positions of a tile lie in the page pool.

Where pages fit in tiles, a position's page and slot are constants beside the tile's first page.

Shape suffixes: N positions of a tile.
"""

import triton
import triton.language as tl


@triton.jit
def pages_between(table, begin, low, high, PAGE: tl.constexpr, POSITIONS: tl.constexpr):
    """The page of each position from `begin`, where a tile begins, of those from `low` up to `high`."""
    n_N = tl.arange(0, POSITIONS)
    place_N = begin // PAGE + n_N // PAGE if POSITIONS % PAGE == 0 else (begin + n_N) // PAGE
    return tl.load(table + place_N, mask=(begin + n_N >= low) & (begin + n_N < high), other=0)


@triton.jit
def slots_of(begin, PAGE: tl.constexpr, POSITIONS: tl.constexpr):
    """The slot of each position from `begin`, where a tile begins: a constant if pages fit in tiles."""
    n_N = tl.arange(0, POSITIONS)
    return n_N % PAGE if POSITIONS % PAGE == 0 else (begin + n_N) % PAGE
