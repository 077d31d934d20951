"""How `floors` finds a row's least score among those listed: three keys a pass.

Shape suffixes: N listed tokens.
"""

import triton
import triton.language as tl

from headway_kernels.sample_bracket import key_of, score_of
from headway_kernels.sample_pieces import mass_of


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
    kept,
    MASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(key, num_listed): the greatest key in [low, end) from which on the weight reaches `need`, as it does
    from low on, and how many scores are then listed. `above` is the weight from end on.

    A list of several blocks is packed before each pass, to what lies in [low, end), or in [low, kept) where
    that is more, for another search. What fits a block stays in registers.
    """
    n_N = tl.arange(0, BLOCK)
    while (end - low > 1) & (num_listed > BLOCK):
        num_listed = _packed(listed_ptr, num_listed, low, tl.maximum(end, kept), 2 * BLOCK)
        if num_listed > BLOCK:
            sum_1_N = tl.zeros((BLOCK,), tl.int64)
            sum_2_N = tl.zeros((BLOCK,), tl.int64)
            sum_3_N = tl.zeros((BLOCK,), tl.int64)
            least_N = tl.full((BLOCK,), 0x7FFFFFFF, tl.int32)
            most_N = tl.full((BLOCK,), -0x80000000, tl.int32)
            for start in range(0, num_listed, BLOCK):
                key_N, weight_N = load_block(
                    listed_ptr, start + n_N, num_listed, largest, temperature, low, MASSES
                )
                more = _parted(key_N, weight_N, low, end)
                sum_1_N += more[0]
                sum_2_N += more[1]
                sum_3_N += more[2]
                least_N = tl.minimum(least_N, more[3])
                most_N = tl.maximum(most_N, more[4])
            low, end, above = _part_of_need(low, end, above, need, sum_1_N, sum_2_N, sum_3_N, least_N, most_N)
    if end - low > 1:
        key_N, weight_N = load_block(listed_ptr, n_N, num_listed, largest, temperature, low, MASSES)
        while end - low > 1:
            found = _parted(key_N, weight_N, low, end)
            low, end, above = _part_of_need(
                low, end, above, need, found[0], found[1], found[2], found[3], found[4]
            )
    return low, num_listed


@triton.jit
def _packed(listed_ptr, num_listed, low, end, BLOCK: tl.constexpr):
    """Keep in place what lies in [low, end) -> how many scores."""
    n_N = tl.arange(0, BLOCK)
    num_packed = num_listed * 0
    for start in range(0, num_listed, BLOCK):
        there_N = start + n_N < num_listed
        score_N = tl.load(listed_ptr + start + n_N, mask=there_N, other=float("-inf"))
        key_N = key_of(score_N)
        keep_N = there_N & (key_N >= low.to(tl.int32)) & (key_N < end.to(tl.int32))
        # A slot is never beyond the block, all of which has been read before the sum is known.
        slot_N = num_packed + tl.cumsum(keep_N.to(tl.int32), 0) - 1
        tl.store(listed_ptr + slot_N, score_N, mask=keep_N)
        num_packed += tl.sum(keep_N.to(tl.int32), 0)
    tl.debug_barrier()  # what comes next reads what other threads have written
    return num_packed


@triton.jit
def load_block(listed_ptr, slot_N, num_listed, largest, temperature, low, MASSES: tl.constexpr):
    """Keys and weights of listed scores; a slot without one has a key below `low`."""
    there_N = slot_N < num_listed
    score_N = tl.load(listed_ptr + slot_N, mask=there_N, other=float("-inf"))
    weight_N = mass_of(score_N, largest, temperature) if MASSES else there_N.to(tl.int64)
    return tl.where(there_N, key_of(score_N), (low - 1).to(tl.int32)), weight_N


@triton.jit
def _keys_between(low, end):
    """Three keys that part [low, end): one midway by value, since keys lie dense around zero, and one midway
    by key on either side, which bounds the number of passes.
    """
    value = score_of(low) * 0.5 + score_of(end - 1) * 0.5
    key_2 = tl.minimum(tl.maximum(key_of(value).to(tl.int64), low + 1), end - 1)
    return low + (key_2 - low + 1) // 2, key_2, key_2 + (end - key_2) // 2


@triton.jit
def _parted(key_N, weight_N, low, end):
    """Weights in [low, end) from each of the three keys on, and the keys there, once for a least, once for a
    greatest: what a program's threads have yet to add up.
    """
    key_1, key_2, key_3 = _keys_between(low, end)
    inside_N = (key_N >= low.to(tl.int32)) & (key_N < end.to(tl.int32))
    weight_1_N = tl.where(inside_N & (key_N >= key_1.to(tl.int32)), weight_N, 0)
    weight_2_N = tl.where(key_N >= key_2.to(tl.int32), weight_1_N, 0)
    weight_3_N = tl.where(key_N >= key_3.to(tl.int32), weight_1_N, 0)
    least_N = tl.where(inside_N, key_N, 0x7FFFFFFF)
    most_N = tl.where(inside_N, key_N, -0x80000000)
    return weight_1_N, weight_2_N, weight_3_N, least_N, most_N


@triton.jit
def _part_of_need(low, end, above, need, sum_1_N, sum_2_N, sum_3_N, least_N, most_N):
    """(low, end, above) of the part where the weight reaches `need`.

    Keys of scores that exist draw both ends in; found along with the weights, they come a pass late.
    """
    key_1, key_2, key_3 = _keys_between(low, end)
    sum_1, sum_2, sum_3 = tl.sum(sum_1_N, 0), tl.sum(sum_2_N, 0), tl.sum(sum_3_N, 0)
    low = tl.maximum(low, tl.min(least_N, 0).to(tl.int64))
    end = tl.minimum(end, tl.max(most_N, 0).to(tl.int64) + 1)
    if (above + sum_3).to(tl.float64) >= need:
        low = tl.maximum(low, key_3)
    elif (above + sum_2).to(tl.float64) >= need:
        low, end, above = tl.maximum(low, key_2), tl.minimum(end, key_3), above + sum_3
    elif (above + sum_1).to(tl.float64) >= need:
        low, end, above = tl.maximum(low, key_1), tl.minimum(end, key_2), above + sum_2
    else:
        end, above = tl.minimum(end, key_1), above + sum_1
    return low, end, above


@triton.jit
def mass_from(listed_ptr, num_listed, largest, temperature, key, BLOCK: tl.constexpr):
    """The listed mass from `key` on."""
    n_N = tl.arange(0, BLOCK)
    sum_N = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, num_listed, BLOCK):
        score_N = tl.load(listed_ptr + start + n_N, mask=start + n_N < num_listed, other=float("-inf"))
        sum_N += tl.where(key_of(score_N) >= key.to(tl.int32), mass_of(score_N, largest, temperature), 0)
    return tl.sum(sum_N, 0)
