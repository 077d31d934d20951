"""Between which scores of a row its floor lies: twice, weights above a few pivots narrow it down.

    low = max(pivot: weight(score >= pivot) >= need),    high = min(pivot: weight(score >= pivot) < need)

Weights are counts where top-k cuts, else masses. The first pivots are spaced for rows as models give them,
dense near the largest score; the second ones divide what is left evenly.

Shape suffixes: R chunks of a row, W sums of a row, one for each pivot of a round; V tokens of
a program.
"""

import triton
import triton.language as tl

from headway_kernels.sample_pieces import GREATEST

# Of a row: the weight of all tokens and of those above each pivot; in the next places the weight of listed
# tokens above each pivot of the second round, of which number 0 is free; then how many are listed, the least
# of their scores and the greatest, as numbers that grow from 0 on.
PIVOTS = tl.constexpr(7)
SECOND = tl.constexpr(8)
LISTED = tl.constexpr(16)
LEAST = tl.constexpr(17)
MOST = tl.constexpr(18)
SUMS = tl.constexpr(32)
LOWEST_KEY = tl.constexpr(-2139095041)  # of -inf
BEYOND = tl.constexpr(1 << 32)  # any key
MASSLESS = tl.constexpr(28.0)  # temperatures below the largest score: exp(-28) * 2**40 is below 1


@triton.jit
def ends_of(ends_ptr, row, num_chunks, WIDE: tl.constexpr):
    """(least, largest) score of a row, -inf aside; both are -inf where all are."""
    part_R = tl.arange(0, WIDE)
    there_R = part_R < num_chunks
    ends_ptr_R = ends_ptr + (row * num_chunks + part_R) * 2
    least = tl.min(tl.load(ends_ptr_R, mask=there_R, other=float("inf")), 0)
    largest = tl.max(tl.load(ends_ptr_R + 1, mask=there_R, other=float("-inf")), 0)
    return tl.minimum(least, largest), largest


@triton.jit
def first_pivot(least, largest, temperature, counts, pivot):
    """Score number `pivot`, from 1: so many units below the largest, 1, 2.25, 4, 6.25, 9, 12.25 and 16, or so
    many eighths of the way to the least where that is nearer.

    The unit is the temperature, by which masses fall, but for top-k, which no temperature changes.
    """
    unit, part = tl.where(counts, 1.0, temperature), pivot * 0.125
    way = tl.maximum(largest, -GREATEST) * part - tl.maximum(least, -GREATEST) * part
    return largest - tl.minimum(unit * ((pivot + 1) * (pivot + 1) * 0.25), way)


@triton.jit
def second_pivot(least, most, largest, temperature, counts, pivot):
    """Score number `pivot`, from 1: so many eighths of the way from the least listed score up."""
    part = pivot * 0.125
    least = tl.maximum(least, tl.where(counts, -GREATEST, largest - temperature * MASSLESS))
    way = tl.maximum(least, -GREATEST) * (1 - part) + tl.maximum(most, -GREATEST) * part
    return tl.minimum(way, most)


@triton.jit
def list_ends(sums_ptr, score_V, listed_V):
    """Widen the row's range of listed scores to these."""
    key_V = key_of(score_V).to(tl.int64)
    tl.atomic_max(sums_ptr + LEAST, tl.max(tl.where(listed_V, -key_V + BEYOND, 0), 0), sem="relaxed")
    tl.atomic_max(sums_ptr + MOST, tl.max(tl.where(listed_V, key_V + BEYOND, 0), 0), sem="relaxed")


@triton.jit
def listed_ends(sums_ptr):
    """The keys of the least score that is listed and of the greatest."""
    return -tl.load(sums_ptr + LEAST) + BEYOND, tl.load(sums_ptr + MOST) - BEYOND


@triton.jit
def first_bracket(sums_ptr, least, largest, temperature, counts, top_k, top_p):
    """(low, high, above, need): the floor is in [low, high), where the weight reaches `need`, `above` of it
    lying from high on. Where top-p follows top-k there is no high: it needs all from low on.
    """
    pivot_W = tl.arange(0, SECOND)
    weight_W = tl.load(sums_ptr + pivot_W)
    total = tl.sum(tl.where(pivot_W == 0, weight_W, 0), 0)
    need = tl.where(counts, top_k.to(tl.float64), total.to(tl.float64) * top_p)
    score_W = first_pivot(least, largest, temperature, counts, pivot_W)
    low, high, above = _narrowed(float("-inf"), float("inf"), total * 0, score_W, weight_W, need)
    both = counts & (top_p < 1)
    return low, tl.where(both, float("inf"), high), tl.where(both, 0, above), need


@triton.jit
def second_bracket(sums_ptr, low, high, above, need, least, most, largest, temperature, counts):
    """(low, high, above) as the second round's sums have it."""
    pivot_W = tl.arange(0, SECOND)
    weight_W = tl.load(sums_ptr + SECOND + pivot_W) + above
    score_W = second_pivot(least, most, largest, temperature, counts, pivot_W)
    return _narrowed(low, high, above, score_W, weight_W, need)


@triton.jit
def _narrowed(low, high, above, score_W, weight_W, need):
    """(low, high, above) by the weights from the pivots on; place 0 has none."""
    pivot_W = tl.arange(0, SECOND)
    enough_W = weight_W.to(tl.float64) >= need
    beyond_W = (pivot_W > 0) & (enough_W == 0)
    enough_W = (pivot_W > 0) & enough_W
    low = tl.maximum(low, tl.max(tl.where(enough_W, score_W, float("-inf")), 0))
    high = tl.minimum(high, tl.min(tl.where(beyond_W, score_W, float("inf")), 0))
    above = tl.maximum(above, tl.max(tl.where(beyond_W, weight_W, 0), 0))
    return low, high, above


@triton.jit
def score_of(key):
    """The float32 that has this key."""
    return _ordered(key.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def key_of(score):
    """A float32 as an integer of the same order."""
    return _ordered(score.to(tl.int32, bitcast=True))


@triton.jit
def _ordered(bits):
    """Between the bits of a float and its key, both ways: negative numbers in reverse order."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
