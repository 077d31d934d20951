"""The op `log_softmax`: log-probabilities of some rows of logits.

    log p_i = (x_i - m) - log sum_j exp(x_j - m),   m = max_j x_j

Two launches, so that a single row has many multiprocessors: one leaves maximum and sum of each chunk, the
other merges them anew in every program and writes. Layout: logits [S, V], places [L] -> float32 [L, V].
Grids: (rows, chunks).

A row's values are the same in any batch, to the bit. A sum of floats would depend on how a program's tokens
lie in registers, which goes by the logits' dtype: that is float32 where any row of the batch is penalised. So
both sums are of integers, exact in any order, and chunks have one size whatever the number of rows.

Source: maxima and sums merge as those of the online normalizer (arXiv 1805.02867, section 3.1).

The likeliest tokens are torch.topk's to find, which needs these values written somewhere.

Shape suffixes: S rows, L rows asked for, V vocabulary, R chunks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.sample_args import check_logits, check_vector
from headway_kernels.sample_pieces import EXACT, GREATEST, MASS_SCALE, load_scores
from headway_kernels.tiles import padded

CHUNK = 2048


def log_softmax(logits_SV: Tensor, places_L: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """As `reference_sample.log_softmax` -> float32 [L, V]. chunk: tokens a program takes, a power of two.

    Raises ValueError for arguments whose shape, dtype or device does not fit.
    """
    check_logits("log_softmax", logits_SV)
    num_rows, vocab_size = len(places_L), logits_SV.shape[1]
    check_vector("log_softmax", "places", places_L, num_rows, logits_SV)
    out_LV = torch.empty(num_rows, vocab_size, dtype=torch.float32, device=logits_SV.device)
    if not out_LV.numel():
        return out_LV
    num_chunks = triton.cdiv(vocab_size, chunk)
    parts_LR2 = torch.empty(num_rows, num_chunks, 2, dtype=torch.float32, device=logits_SV.device)
    grid = (num_rows, num_chunks)
    arguments = (logits_SV, places_L, parts_LR2, vocab_size, logits_SV.stride(0), num_chunks)
    _log_softmax_sum_kernel[grid](*arguments, CHUNK=chunk, num_warps=4, **EXACT)
    wide = padded(num_chunks, 1)
    _log_softmax_kernel[grid](*arguments, out_LV, CHUNK=chunk, WIDE=wide, num_warps=4, **EXACT)
    return out_LV


@triton.jit(do_not_specialize=["num_chunks"])
def _log_softmax_sum_kernel(
    logits_ptr, places_ptr, parts_ptr, vocab_size, logits_row, num_chunks, CHUNK: tl.constexpr
):
    """Maximum of a chunk, and its mass: the sum of exponentials below it, in units of 1 / MASS_SCALE.

    A chunk of -inf alone has none.
    """
    index, part = tl.program_id(0), tl.program_id(1)
    id_V = part * CHUNK + tl.arange(0, CHUNK)
    row_ptr = logits_ptr + tl.load(places_ptr + index) * logits_row
    score_V = load_scores(row_ptr, id_V, id_V < vocab_size)
    largest = tl.maximum(tl.max(score_V, 0), -GREATEST)
    parts_ptr += (index * num_chunks + part) * 2
    tl.store(parts_ptr, largest)
    mass_V = (tl.exp(score_V - largest) * MASS_SCALE).to(tl.int64)
    tl.store(parts_ptr + 1, tl.sum(mass_V, 0).to(tl.float32))


@triton.jit(do_not_specialize=["num_chunks"])
def _log_softmax_kernel(
    logits_ptr,
    places_ptr,
    parts_ptr,
    vocab_size,
    logits_row,
    num_chunks,
    out_ptr,
    CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
):
    index, part = tl.program_id(0), tl.program_id(1)
    part_R = tl.arange(0, WIDE)
    there_R = part_R < num_chunks
    part_ptr_R = parts_ptr + (index * num_chunks + part_R) * 2
    largest_R = tl.load(part_ptr_R, mask=there_R, other=-GREATEST)
    largest = tl.max(largest_R, 0)
    mass_R = tl.load(part_ptr_R + 1, mask=there_R, other=0.0) * tl.exp(largest_R - largest)
    total = tl.sum(mass_R.to(tl.int64), 0).to(tl.float32) * (1 / MASS_SCALE)
    id_V = part * CHUNK + tl.arange(0, CHUNK)
    there_V = id_V < vocab_size
    row_ptr = logits_ptr + tl.load(places_ptr + index) * logits_row
    score_V = load_scores(row_ptr, id_V, there_V)
    # The largest alone makes 1, but where all are -inf.
    logprob_V = (score_V - largest) - tl.log(tl.maximum(total, 1.0))
    tl.store(out_ptr + index.to(tl.int64) * vocab_size + id_V, logprob_V, mask=there_V)
