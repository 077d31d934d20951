"""One rank: executes plans, in order, on its shard. Every rank of a replica samples every token itself,
from the same gathered logits, so no token has to be sent around before the next step can start.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from headway.core.errors import StepMismatch
from headway.core.step import Ledger, StepPlan, StepResult
from headway.model.collectives import Collectives
from headway.model.decoder import Decoder
from headway.worker.inputs import model_input
from headway.worker.kv_pool import KvPool
from headway.worker.rows import RowTables
from headway.worker.sampler import Sampled, Sampler
from headway_kernels import reference


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A launched step; `result` waits for the device."""

    step: int
    sampled: Sampled | None

    def result(self) -> StepResult:
        return StepResult(step=self.step, tokens=self.sampled.to_host() if self.sampled else ())


class Rank:
    """A shard of the model with its pool, rows and sampler.

    vocab_sizes: how much of the vocabulary each rank has. ops: what the sampler computes with, as in
    `Decoder`. Not thread-safe.
    """

    def __init__(
        self,
        *,
        decoder: Decoder,
        collectives: Collectives,
        pool: KvPool,
        vocab_sizes: Sequence[int],
        max_num_rows: int,
        max_model_len: int,
        device: torch.device,
        ops: ModuleType = reference,
    ) -> None:
        self.rank = collectives.rank
        self.pool = pool
        self.decoder = decoder
        self._collectives = collectives
        self._vocab_sizes = vocab_sizes
        self._device = device
        self._ledger = Ledger()
        self._tables = RowTables(
            max_num_rows=max_num_rows,
            num_groups=len(decoder.spec.windows),
            page_size=pool.page_size,
            max_model_len=max_model_len,
        )
        self._sampler = Sampler(
            vocab_size=decoder.spec.vocab_size, max_num_rows=max_num_rows, device=device, ops=ops
        )
        self._last_token = torch.zeros(max_num_rows, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Start `plan` on the device. Raises StepMismatch before anything is computed if it does not fit."""
        digest = self._ledger.apply(plan)
        if digest != plan.digest:
            raise StepMismatch(self.rank, plan.step, f"digest {digest:#x}, plan says {plan.digest:#x}")
        self._tables.apply(plan)
        for row in plan.ended:
            self._sampler.end(row)
        for admission in plan.admissions:
            self._sampler.admit(admission)
            self._last_token[admission.row] = admission.token_ids[-1]
        if not plan.rows:
            return PendingStep(plan.step, None)
        return PendingStep(plan.step, self._compute(plan))

    def _compute(self, plan: StepPlan) -> Sampled | None:
        batch = model_input(
            plan, self._tables, self._last_token, page_size=self.pool.page_size, device=self._device
        )
        for row, count in zip(plan.rows, plan.num_tokens, strict=True):
            self._tables.lengths[row] += count
        logits_NV = self.decoder.forward(batch, self.pool.k, self.pool.v)
        logits_NV = self._collectives.gather_vocab(logits_NV, self._vocab_sizes)
        rows = [row for row, samples in zip(plan.rows, plan.samples, strict=True) if samples]
        if not rows:
            return None
        positions = self._tables.lengths[rows].tolist()
        sampled = self._sampler.sample(logits_NV, rows, positions)
        self._last_token[rows] = sampled.tokens_S
        return sampled

    def close(self) -> None:
        """Leave the collectives; ranks that still wait for this one fail."""
        self._collectives.close()
