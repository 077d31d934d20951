"""The op `penalise_`: repetition, frequency and presence penalties in one launch, in place.

As `reference_sample.penalise`, value by value: products and sums are rounded one by one. A token's logit, its
mark in the prompt and its count in the output are read once: 13 bytes a token, with the logit's way back.
Layout: logits [S, V], tables [R, V]. Grid: (rows, chunks).

Source: CTRL (arXiv 1909.05858, section 4.1) for repetition, which divides or multiplies by sign as in
transformers; OpenAI's API for frequency and presence. The kernel is our own.

Shape suffixes: S sampled rows, P penalised ones, R rows of the batch tables, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels import debug
from headway_kernels.sample_args import check_column, check_table, check_vector
from headway_kernels.sample_pieces import EXACT

CHUNK = 1024


def penalise_(
    logits_SV: Tensor,
    *,
    places_P: Tensor,
    rows_P: Tensor,
    repetition_P1: Tensor,
    presence_P1: Tensor,
    frequency_P1: Tensor,
    in_prompt_RV: Tensor,
    num_in_output_RV: Tensor,
    chunk: int = CHUNK,
    check_values: bool = False,
) -> None:
    """As `reference_sample.penalise_`. chunk: tokens a program takes, a power of two.

    check_values: look at places, of which no two may be the same, and rows too (`debug`), which waits for the
        device.
    Raises ValueError for arguments whose shape, dtype or device does not fit.
    """
    num_rows = len(places_P)
    check_table("penalise_", "logits", logits_SV, torch.float32, logits_SV)
    check_vector("penalise_", "places", places_P, num_rows, logits_SV)
    check_vector("penalise_", "rows", rows_P, num_rows, logits_SV)
    penalties = {"repetition": repetition_P1, "presence": presence_P1, "frequency": frequency_P1}
    for name, values_P1 in penalties.items():
        check_column("penalise_", name, values_P1, num_rows, torch.float32, logits_SV)
    check_table("penalise_", "in_prompt", in_prompt_RV, torch.bool, logits_SV)
    check_table("penalise_", "num_in_output", num_in_output_RV, torch.int32, logits_SV)
    if check_values:
        debug.check_slots("penalise_", "places", places_P, len(logits_SV))
        debug.check_indices("penalise_", "rows", rows_P, min(len(in_prompt_RV), len(num_in_output_RV)))
    vocab_size = logits_SV.shape[1]
    if num_rows * vocab_size:
        _penalise_kernel[(num_rows, triton.cdiv(vocab_size, chunk))](
            logits_SV,
            places_P,
            rows_P,
            *penalties.values(),
            in_prompt_RV.view(torch.uint8),
            num_in_output_RV,
            vocab_size,
            logits_SV.stride(0),
            in_prompt_RV.stride(0),
            num_in_output_RV.stride(0),
            *(values_P1.stride(0) for values_P1 in penalties.values()),
            CHUNK=chunk,
            num_warps=4,
            **EXACT,
        )


@triton.jit(do_not_specialize=["repetition_row", "presence_row", "frequency_row"])
def _penalise_kernel(
    logits_ptr,
    places_ptr,
    rows_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    in_prompt_ptr,
    num_in_output_ptr,
    vocab_size,
    logits_row,
    in_prompt_row,
    num_in_output_row,
    repetition_row,
    presence_row,
    frequency_row,
    CHUNK: tl.constexpr,
):
    index = tl.program_id(0)
    place, row = tl.load(places_ptr + index), tl.load(rows_ptr + index)
    repetition = tl.load(repetition_ptr + index * repetition_row)
    presence = tl.load(presence_ptr + index * presence_row)
    frequency = tl.load(frequency_ptr + index * frequency_row)
    id_V = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    there_V = id_V < vocab_size
    logit_ptr_V = logits_ptr + place * logits_row + id_V
    logit_V = tl.load(logit_ptr_V, mask=there_V, other=0.0)
    in_prompt_V = tl.load(in_prompt_ptr + row * in_prompt_row + id_V, mask=there_V, other=0) != 0
    count_V = tl.load(num_in_output_ptr + row * num_in_output_row + id_V, mask=there_V, other=0)
    in_output_V = count_V > 0
    repeated_V = tl.where(logit_V > 0, tl.div_rn(logit_V, repetition), logit_V * repetition)
    score_V = tl.where(in_prompt_V | in_output_V, repeated_V, logit_V)
    score_V = score_V - frequency * count_V.to(tl.float32) - presence * in_output_V.to(tl.float32)
    tl.store(logit_ptr_V, score_V, mask=there_V)
