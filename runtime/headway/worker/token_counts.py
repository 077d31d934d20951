"""Which tokens each row has used: what penalties look at.

Shapes: R rows of the batch tables, S sampled rows of a step, P penalised ones of them, V vocabulary.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor


class TokenCounts:
    """Prompt membership (bool) and output counts (int32) of every row, [R, V] each.

    5 bytes for each row and token of the vocabulary, so it is made when the first penalised row is admitted.
    """

    def __init__(self, *, vocab_size: int, max_num_rows: int, device: torch.device) -> None:
        self.in_prompt_RV = torch.zeros(max_num_rows, vocab_size, dtype=torch.bool, device=device)
        self.num_in_output_RV = torch.zeros(max_num_rows, vocab_size, dtype=torch.int32, device=device)

    def admit(self, row: int, prompt_ids: Tensor, output_ids: Tensor) -> None:
        """Start `row` afresh with the tokens (int64, one dimension) that it already has."""
        self.in_prompt_RV[row].zero_().index_fill_(0, prompt_ids, True)
        ones = torch.ones_like(output_ids, dtype=torch.int32)
        self.num_in_output_RV[row].zero_().index_add_(0, output_ids, ones)


@dataclass(frozen=True, kw_only=True)
class PenalisedRows:
    """The penalised rows of a batch: places in the batch, rows of the tables (int64), penalties (float32)."""

    counts: TokenCounts
    places_P: Tensor
    rows_P: Tensor
    repetition_P1: Tensor
    presence_P1: Tensor
    frequency_P1: Tensor

    def penalise_(self, logits_SV: Tensor, ops: ModuleType) -> None:
        """Apply the penalties to a step's logits (float32), in place."""
        ops.penalise_(
            logits_SV,
            places_P=self.places_P,
            rows_P=self.rows_P,
            repetition_P1=self.repetition_P1,
            presence_P1=self.presence_P1,
            frequency_P1=self.frequency_P1,
            in_prompt_RV=self.counts.in_prompt_RV,
            num_in_output_RV=self.counts.num_in_output_RV,
        )

    def count(self, tokens_S: Tensor) -> None:
        """Take the sampled tokens into account; the next step sees them without the host."""
        num_in_output_RV = self.counts.num_in_output_RV
        cells_P = self.rows_P * num_in_output_RV.shape[-1] + tokens_S.index_select(0, self.places_P)
        num_in_output_RV.view(-1).index_add_(0, cells_P, torch.ones_like(cells_P, dtype=torch.int32))
