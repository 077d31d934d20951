"""The cuts of the op `sample` on a GPU: the least score of a row that top-k, top-p and min-p leave.

    top-k:  the greatest t with  #(score >= t) >= k
    top-p:  the greatest t with  mass(score >= t) >= p * mass(score >= top-k's)

No row is sorted. Counts and masses are integers, so they add up to the same in any order, and t is found by
search. One launch finds each row's ends; one adds up weights above seven scores, which brackets t; one lists
what lies in the bracket (in no certain order: nothing depends on it); one adds up the listed weights above
seven scores more, where that is much; and in one, a program a row searches what is left. min-p needs the
largest score alone. Layout: logits [S, V], any row stride. Grids: (rows, chunks), (rows,).

A row is read four times with the draw, by as many programs as it has chunks, and its list once. What is left
to the last program is a few blocks of scores, however wide the row is spread. It is more, and the same answer
comes later, where different scores crowd around t, and where top-p follows a top-k of many thousands.

Source: top-k is of arXiv 1805.04833, top-p of 1904.09751, min-p of 2407.01082; the search is our own.

Masses are the reference's up to the error of the hardware's exponential.

Shape suffixes: S sampled rows, V tokens of a program, C rows with top-k or top-p, R chunks, N listed tokens,
W weights above scores of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.reference_sample import TopCut
from headway_kernels.sample_args import check_column, check_logits, check_vector
from headway_kernels.sample_bracket import (
    LISTED,
    LOWEST_KEY,
    PIVOTS,
    SECOND,
    SUMS,
    ends_of,
    first_bracket,
    first_pivot,
    key_of,
    list_ends,
    listed_ends,
    score_of,
    second_bracket,
    second_pivot,
)
from headway_kernels.sample_pieces import EXACT, load_scores, mass_of
from headway_kernels.sample_search import mass_from, search
from headway_kernels.tiles import padded, vocab_chunk

BLOCK = 2048  # listed tokens that one program looks at together; a second round narrows longer lists


def floors(
    logits_SV: Tensor,
    *,
    temperature_S1: Tensor,
    top: TopCut | None = None,
    min_p_S1: Tensor | None = None,
    chunk: int | None = None,
    block: int = BLOCK,
) -> Tensor | None:
    """As `reference_sample.floors`: float32 [S, 1], or None. `chunk` and errors as in `sample`."""
    if top is None and min_p_S1 is None:
        return None
    _check(logits_SV, temperature_S1, top, min_p_S1)
    num_rows, vocab_size = logits_SV.shape
    chunk = chunk or vocab_chunk(num_rows, vocab_size)
    num_chunks = triton.cdiv(vocab_size, chunk)
    device = logits_SV.device
    floor_S1 = torch.empty(num_rows, 1, dtype=torch.float32, device=device)
    if not num_rows:
        return floor_S1
    ends_SR2 = torch.empty(num_rows, num_chunks, 2, dtype=torch.float32, device=device)
    sums_SW = torch.empty(num_rows, SUMS.value, dtype=torch.int64, device=device)
    row = logits_SV.stride(0)
    parts = {"CHUNK": chunk, "num_warps": 4, **EXACT}
    _ends_kernel[(num_rows, num_chunks)](
        logits_SV, ends_SR2, floor_S1, sums_SW, vocab_size, row, num_chunks, **parts
    )
    wide = padded(num_chunks, 1)
    if top is not None and len(top.places_C):
        num_cut = len(top.places_C)
        listed_CV = torch.empty(num_cut, vocab_size, dtype=torch.float32, device=device)
        tables = (top.places_C, top.temperature_C1, top.top_k_C1, top.top_p_C1, ends_SR2, sums_SW)
        strides = (top.temperature_C1.stride(0), top.top_k_C1.stride(0), top.top_p_C1.stride(0))
        common = (tables, strides, vocab_size, num_chunks)
        grid = (num_cut, num_chunks)
        _weigh_kernel[grid](logits_SV, row, *common, WIDE=wide, **parts)
        _list_kernel[grid](logits_SV, row, listed_CV, *common, WIDE=wide, **parts)
        _weigh_listed_kernel[grid](listed_CV, *common, WIDE=wide, BLOCK=block, **parts)
        _search_kernel[(num_cut,)](listed_CV, floor_S1, *common, WIDE=wide, BLOCK=block, num_warps=8, **EXACT)
    if min_p_S1 is not None:
        _min_p_kernel[(num_rows,)](
            ends_SR2,
            temperature_S1,
            min_p_S1,
            floor_S1,
            num_chunks,
            temperature_S1.stride(0),
            min_p_S1.stride(0),
            WIDE=wide,
            num_warps=1,
            **EXACT,
        )
    return floor_S1


def _check(logits_SV: Tensor, temperature_S1: Tensor, top: TopCut | None, min_p_S1: Tensor | None) -> None:
    num_rows = len(logits_SV)
    check_logits("floors", logits_SV)
    check_column("floors", "temperature", temperature_S1, num_rows, torch.float32, logits_SV)
    if min_p_S1 is not None:
        check_column("floors", "min_p", min_p_S1, num_rows, torch.float32, logits_SV)
    if top is not None:
        num_cut = len(top.places_C)
        check_vector("floors", "top.places", top.places_C, num_cut, logits_SV)
        check_column("floors", "top.temperature", top.temperature_C1, num_cut, torch.float32, logits_SV)
        check_column("floors", "top.top_k", top.top_k_C1, num_cut, torch.int64, logits_SV)
        check_column("floors", "top.top_p", top.top_p_C1, num_cut, torch.float32, logits_SV)


@triton.jit(do_not_specialize=["num_chunks"])
def _ends_kernel(
    logits_ptr, ends_ptr, floor_ptr, sums_ptr, vocab_size, logits_row, num_chunks, CHUNK: tl.constexpr
):
    """The least score of a chunk but for -inf, and the largest; a row's first program readies its results."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    id_V = part * CHUNK + tl.arange(0, CHUNK)
    score_V = load_scores(logits_ptr + row * logits_row, id_V, id_V < vocab_size)
    ends_ptr += (row * num_chunks + part) * 2
    tl.store(ends_ptr, tl.min(tl.where(score_V > float("-inf"), score_V, float("inf")), 0))
    tl.store(ends_ptr + 1, tl.max(score_V, 0))
    if part == 0:
        tl.store(floor_ptr + row, float("-inf"))
        tl.store(sums_ptr + row * SUMS + tl.arange(0, SUMS), tl.zeros((SUMS,), tl.int64))


@triton.jit
def _cut_row(tables, strides, num_chunks, WIDE: tl.constexpr):
    """(place, temperature, top_k, top_p, least score, largest, sums) of the program's row with cuts.

    Tables and strides come as tuples, whose numbers Triton always specializes: a kernel is compiled for each
    kind of strides. The sampler's are always the same.
    """
    places_ptr, temperature_ptr, top_k_ptr, top_p_ptr, ends_ptr, sums_ptr = tables
    temperature_row, top_k_row, top_p_row = strides
    index = tl.program_id(0)
    place = tl.load(places_ptr + index)
    temperature = tl.load(temperature_ptr + index * temperature_row)
    top_k = tl.load(top_k_ptr + index * top_k_row)
    top_p = tl.load(top_p_ptr + index * top_p_row)
    least, largest = ends_of(ends_ptr, place, num_chunks, WIDE)
    return place, temperature, top_k, top_p, least, largest, sums_ptr + place * SUMS


@triton.jit
def _num_listed(tables):
    """Of the program's row."""
    places_ptr, _, _, _, _, sums_ptr = tables
    return tl.load(sums_ptr + tl.load(places_ptr + tl.program_id(0)) * SUMS + LISTED)


@triton.jit(do_not_specialize=["num_chunks"])
def _weigh_kernel(
    logits_ptr, logits_row, tables, strides, vocab_size, num_chunks, WIDE: tl.constexpr, CHUNK: tl.constexpr
):
    """Add a chunk's weights above the first pivots to the row's: counts where top-k cuts, else masses."""
    place, temperature, top_k, _, least, largest, sums_ptr = _cut_row(tables, strides, num_chunks, WIDE)
    counts = top_k < vocab_size
    id_V = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    there_V = id_V < vocab_size
    score_V = load_scores(logits_ptr + place * logits_row, id_V, there_V)
    weight_V = there_V.to(tl.int64) if counts else mass_of(score_V, largest, temperature)
    tl.atomic_add(sums_ptr, tl.sum(weight_V, 0), sem="relaxed")
    for pivot in tl.static_range(1, PIVOTS + 1):
        above_V = score_V >= first_pivot(least, largest, temperature, counts, pivot)
        tl.atomic_add(sums_ptr + pivot, tl.sum(tl.where(above_V, weight_V, 0), 0), sem="relaxed")


@triton.jit(do_not_specialize=["num_chunks"])
def _list_kernel(
    logits_ptr,
    logits_row,
    listed_ptr,
    tables,
    strides,
    vocab_size,
    num_chunks,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """List the scores of a chunk that lie in the bracket."""
    place, temperature, top_k, top_p, least, largest, sums_ptr = _cut_row(tables, strides, num_chunks, WIDE)
    counts = top_k < vocab_size
    low, high, _, _ = first_bracket(sums_ptr, least, largest, temperature, counts, top_k, top_p)
    id_V = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    there_V = id_V < vocab_size
    score_V = load_scores(logits_ptr + place * logits_row, id_V, there_V)
    listed_V = there_V & (score_V >= low) & (score_V < high)
    num_listed = tl.sum(listed_V.to(tl.int32), 0)
    if num_listed > 0:
        list_ends(sums_ptr, score_V, listed_V)
        first = tl.atomic_add(sums_ptr + LISTED, num_listed.to(tl.int64), sem="relaxed")
        slot_V = first + tl.cumsum(listed_V.to(tl.int32), 0) - 1
        listed_ptr += tl.program_id(0).to(tl.int64) * vocab_size
        tl.store(listed_ptr + slot_V, score_V, mask=listed_V)


@triton.jit(do_not_specialize=["num_chunks"])
def _weigh_listed_kernel(
    listed_ptr,
    tables,
    strides,
    vocab_size,
    num_chunks,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Add the weights above the second pivots of a chunk of a row's list, if that is longer than a block."""
    index = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * CHUNK
    num_listed = _num_listed(tables)
    if (num_listed > BLOCK) & (first < num_listed):
        _, temperature, top_k, _, _, largest, sums_ptr = _cut_row(tables, strides, num_chunks, WIDE)
        counts = top_k < vocab_size
        slot_V = first + tl.arange(0, CHUNK)
        there_V = slot_V < num_listed
        score_V = tl.load(listed_ptr + index * vocab_size + slot_V, mask=there_V, other=float("-inf"))
        weight_V = there_V.to(tl.int64) if counts else mass_of(score_V, largest, temperature)
        least_key, most_key = listed_ends(sums_ptr)
        least, most = score_of(least_key), score_of(most_key)
        for pivot in tl.static_range(1, PIVOTS + 1):
            above_V = score_V >= second_pivot(least, most, largest, temperature, counts, pivot)
            weight = tl.sum(tl.where(above_V, weight_V, 0), 0)
            tl.atomic_add(sums_ptr + SECOND + pivot, weight, sem="relaxed")


@triton.jit(do_not_specialize=["num_chunks"])
def _search_kernel(
    listed_ptr, floor_ptr, tables, strides, vocab_size, num_chunks, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """The floor of one row, from its list."""
    place, temperature, top_k, top_p, least, largest, sums_ptr = _cut_row(tables, strides, num_chunks, WIDE)
    counts = top_k < vocab_size
    low, high, above, need = first_bracket(sums_ptr, least, largest, temperature, counts, top_k, top_p)
    num_listed = tl.load(sums_ptr + LISTED)
    least_key, most_key = listed_ends(sums_ptr)
    if num_listed > BLOCK:
        least, most = score_of(least_key), score_of(most_key)
        low, high, above = second_bracket(
            sums_ptr, low, high, above, need, least, most, largest, temperature, counts
        )
    listed_ptr += tl.program_id(0).to(tl.int64) * vocab_size
    begin = tl.maximum(key_of(low).to(tl.int64), least_key)
    last = key_of(largest).to(tl.int64) + 1
    end = tl.minimum(key_of(high).to(tl.int64), most_key + 1)
    floor = tl.full((), LOWEST_KEY, tl.int64)
    if counts:
        kept = tl.where(top_p < 1, last, begin)
        floor, num_listed = search(
            listed_ptr, num_listed, largest, temperature, begin, end, above, need, kept, False, BLOCK
        )
        need = mass_from(listed_ptr, num_listed, largest, temperature, floor, BLOCK).to(tl.float64) * top_p
        begin, end, above = floor, last, above * 0
    if top_p < 1:
        floor, num_listed = search(
            listed_ptr, num_listed, largest, temperature, begin, end, above, need, begin, True, BLOCK
        )
    tl.store(floor_ptr + place, score_of(floor))


@triton.jit(do_not_specialize=["num_chunks", "temperature_row", "min_p_row"])
def _min_p_kernel(
    ends_ptr,
    temperature_ptr,
    min_p_ptr,
    floor_ptr,
    num_chunks,
    temperature_row,
    min_p_row,
    WIDE: tl.constexpr,
):
    """Raise the floor of one row to min_p * p_max, in logarithms."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row * temperature_row)
    min_p = tl.load(min_p_ptr + row * min_p_row)
    if min_p > 0:
        _, largest = ends_of(ends_ptr, row, num_chunks, WIDE)
        least = largest + temperature * tl.log(min_p)
        tl.store(floor_ptr + row, tl.maximum(tl.load(floor_ptr + row), least))
