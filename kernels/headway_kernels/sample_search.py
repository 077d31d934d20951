"""How `floors` finds a row's least score: bracketed by sums above a few pivots, then searched among a list.

Shape suffixes: R chunks of a row, W sums of a row, N listed tokens.
"""

import triton
import triton.language as tl

from headway_kernels.sample_pieces import mass_of

# Of a row: the weight of all tokens, of those above PIVOTS scores, and how many are listed.
SUMS = tl.constexpr(8)
PIVOTS = tl.constexpr(4)
LISTED = tl.constexpr(7)
LOWEST_KEY = tl.constexpr(-2139095041)  # of -inf


@triton.jit
def largest_of(largest_ptr, row, num_chunks, WIDE: tl.constexpr):
    part_R = tl.arange(0, WIDE)
    return tl.max(
        tl.load(largest_ptr + row * num_chunks + part_R, mask=part_R < num_chunks, other=float("-inf")), 0
    )


@triton.jit
def pivot_of(largest, temperature, counts, pivot):
    """Score number `pivot`, from 1 for the lowest to `PIVOTS`: 16, 8, 4 and 2 units below the largest.

    The unit is the temperature, by which masses fall, but for top-k, which no temperature changes.
    """
    return largest - tl.where(counts, 1.0, temperature) * (32 >> pivot)


@triton.jit
def bracket(sums_ptr, largest, temperature, counts, top_k, top_p):
    """(low, high, above, need): the floor is in [low, high), where the weight reaches `need`, `above` of it
    lying from high on. For top-k there is no high: all from low on is listed.
    """
    pivot_W = tl.arange(0, SUMS)
    real_W = pivot_W <= PIVOTS
    weight_W = tl.load(sums_ptr + pivot_W, mask=real_W, other=0)
    total = tl.sum(tl.where(pivot_W == 0, weight_W, 0), 0)
    need = tl.where(counts, top_k.to(tl.float64), total.to(tl.float64) * top_p)
    score_W = pivot_of(largest, temperature, counts, tl.where(real_W, pivot_W, PIVOTS))
    enough_W = (pivot_W == 0) | (real_W & (weight_W.to(tl.float64) >= need))
    low = tl.max(tl.where(enough_W & (pivot_W > 0), score_W, float("-inf")), 0)
    beyond_W = real_W & (enough_W == 0) & (counts == 0)
    high = tl.min(tl.where(beyond_W, score_W, float("inf")), 0)
    above = tl.max(tl.where(beyond_W, weight_W, 0), 0)
    return low, high, above, need


@triton.jit
def search(
    listed_ptr,
    num_listed,
    largest,
    temperature,
    low,
    end,
    above,
    need,
    MASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(key, num_listed): the greatest key in [low, end) from which on the weight reaches `need`, as it does
    from low on, and how many scores are then listed. `above` is the weight from end on.

    Each pass quarters the range. Keys of scores that exist draw both ends in; found along with the weights,
    they come a pass late. A list of several blocks is packed in place on the way: to what lies in [low, end)
    if weights are masses, and to all from low on if they are counts, since a search among those may follow.
    """
    n_N = tl.arange(0, BLOCK)
    while end - low > 1:
        step = (end - low + 3) // 4
        key_1 = low + step
        key_2 = tl.minimum(key_1 + step, end - 1)
        key_3 = tl.minimum(key_2 + step, end - 1)
        sum_1_N = tl.zeros((BLOCK,), tl.int64)
        sum_2_N = tl.zeros((BLOCK,), tl.int64)
        sum_3_N = tl.zeros((BLOCK,), tl.int64)
        least_N = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)
        most_N = tl.full((BLOCK,), -0x80000000, tl.int32)
        packs = num_listed > BLOCK
        num_packed = num_listed * 0
        for start in range(0, num_listed, BLOCK):
            there_N = start + n_N < num_listed
            score_N = tl.load(listed_ptr + start + n_N, mask=there_N, other=float("-inf"))
            key_N = key_of(score_N)
            from_low_N = there_N & (key_N >= low.to(tl.int32))
            inside_N = from_low_N & (key_N <= (end - 1).to(tl.int32))
            weight_N = mass_of(score_N, largest, temperature) if MASSES else there_N.to(tl.int64)
            weight_N = tl.where(inside_N, weight_N, 0)
            sum_1_N += tl.where(key_N >= key_1.to(tl.int32), weight_N, 0)
            sum_2_N += tl.where(key_N >= key_2.to(tl.int32), weight_N, 0)
            sum_3_N += tl.where(key_N >= key_3.to(tl.int32), weight_N, 0)
            least_N = tl.where(inside_N, tl.minimum(least_N, key_N), least_N)
            most_N = tl.where(inside_N, tl.maximum(most_N, key_N), most_N)
            if packs:
                # A slot is never beyond the block, all of which has been read before the sum is known.
                keep_N = (inside_N if MASSES else from_low_N).to(tl.int32)
                slot_N = num_packed + tl.cumsum(keep_N, 0) - 1
                tl.store(listed_ptr + slot_N, score_N, mask=keep_N > 0)
                num_packed += tl.sum(keep_N, 0)
        if packs:
            num_listed = num_packed
            tl.debug_barrier()  # the next pass reads what other threads have written
        sum_1, sum_2, sum_3 = tl.sum(sum_1_N, 0), tl.sum(sum_2_N, 0), tl.sum(sum_3_N, 0)
        enough_1 = (above + sum_1).to(tl.float64) >= need
        enough_2 = (above + sum_2).to(tl.float64) >= need
        enough_3 = (above + sum_3).to(tl.float64) >= need
        low = tl.maximum(low, tl.min(least_N, 0).to(tl.int64))
        end = tl.minimum(end, tl.max(most_N, 0).to(tl.int64) + 1)
        if enough_3:
            low = tl.maximum(low, key_3)
        elif enough_2:
            low, end, above = tl.maximum(low, key_2), tl.minimum(end, key_3), above + sum_3
        elif enough_1:
            low, end, above = tl.maximum(low, key_1), tl.minimum(end, key_2), above + sum_2
        else:
            end, above = tl.minimum(end, key_1), above + sum_1
    return low, num_listed


@triton.jit
def mass_from(listed_ptr, num_listed, largest, temperature, key, BLOCK: tl.constexpr):
    """The listed mass from `key` on."""
    n_N = tl.arange(0, BLOCK)
    sum_N = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, num_listed, BLOCK):
        score_N = tl.load(listed_ptr + start + n_N, mask=start + n_N < num_listed, other=float("-inf"))
        sum_N += tl.where(key_of(score_N) >= key.to(tl.int32), mass_of(score_N, largest, temperature), 0)
    return tl.sum(sum_N, 0)


@triton.jit
def key_of(score):
    """A float32 as an integer of the same order."""
    return ordered(score.to(tl.int32, bitcast=True))


@triton.jit
def ordered(bits):
    """Between the bits of a float and its key, both ways: negative numbers in reverse order."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
