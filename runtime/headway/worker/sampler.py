"""One rank's sampler: it keeps every row's parameters and chooses the tokens of a step.

What each parameter means is said in `headway.core.sampling`, how a token is chosen in
`headway_kernels.reference_sample`. Nothing but `Sampled.to_host` waits for the device, so a step may be
launched before the host knows the tokens of the step before it: which work a step needs follows from its
rows' parameters.

    S  sampled rows of a step    V  vocabulary                    R  rows of the batch tables
    P  penalised rows            C  rows with top-k or top-p      F  parameters of a row
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from headway.core.step import Admission, SampledToken
from headway.worker.logprobs import LogprobRows, Logprobs
from headway.worker.token_counts import PenalisedRows, TokenCounts
from headway_kernels import reference
from headway_kernels.reference_sample import TopCut

FIELDS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The tokens of a step in the order of `rows`. `tokens_S`, int64, can feed the next step at once."""

    rows: tuple[int, ...]
    tokens_S: Tensor
    logprobs: Logprobs | None = None

    def to_host(self) -> tuple[SampledToken, ...]:
        """The tokens, with the logprobs of the rows that asked. Waits for the device."""
        token_ids = self.tokens_S.tolist()
        found = self.logprobs.to_host(token_ids) if self.logprobs else {}
        return tuple(
            SampledToken(row=row, token_id=token, logprobs=found.get(place, ()))
            for place, (row, token) in enumerate(zip(self.rows, token_ids, strict=True))
        )


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What the host knows of a row."""

    greedy: bool
    top_k: int  # the whole vocabulary where nothing is cut
    uses_top: bool
    uses_min_p: bool
    penalised: bool
    logprobs: int | None
    banned: tuple[int, ...]
    banned_until: int  # position


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """What stays the same from step to step while the list of rows does. None or empty: no row needs it."""

    rows: tuple[int, ...]
    seeds_S: Tensor
    temperature_S1: Tensor | None
    min_p_S1: Tensor | None
    top: TopCut | None
    penalised: PenalisedRows | None
    logprobs: LogprobRows | None
    bans: tuple[tuple[int, _Row], ...]  # place, row


class Sampler:
    """Samples the next tokens of admitted rows, the same on every rank.

    ops: the module that computes; `headway_kernels.reference` or one with the same functions.
    """

    def __init__(
        self, *, vocab_size: int, max_num_rows: int, device: torch.device, ops: ModuleType = reference
    ) -> None:
        self._vocab_size = vocab_size
        self._max_num_rows = max_num_rows
        self._device = device
        self._ops = ops
        self._rows: dict[int, _Row] = {}
        self._table_RF = torch.zeros(max_num_rows, len(FIELDS), device=device)
        self._seeds_R = torch.zeros(max_num_rows, dtype=torch.int64, device=device)
        self._counts: TokenCounts | None = None
        self._batch: _Batch | None = None
        self._banned_places: tuple[int, ...] = ()
        self._banned_cells: Tensor | None = None

    def admit(self, admission: Admission) -> None:
        """Let a sequence take its row, in place of whatever was there."""
        number, params = admission.row, admission.sampling
        row = self._rows[number] = _describe(admission, self._vocab_size)
        values = {name: float(getattr(params, name)) for name in FIELDS}
        # What is above 0 must stay so in float32.
        warm = max(params.temperature, torch.finfo(torch.float32).tiny)
        values["temperature"] = 0.0 if row.greedy else warm
        self._table_RF[number].copy_(self._stage(list(values.values()), torch.float32))
        self._seeds_R[number].fill_(_signed(admission.seed))
        if row.penalised:
            self._count(admission)
        self._batch = None

    def end(self, row: int) -> None:
        """Forget a row."""
        del self._rows[row]
        self._batch = None

    def sample(self, logits_SV: Tensor, rows: Sequence[int], positions: Sequence[int]) -> Sampled:
        """Choose one token for each of `rows` and count it as theirs.

        logits_SV: one row each, any float type; computed in float32 and left as they are.
        positions: the index in its sequence of each new token, that is the number of tokens before it.
        """
        if self._batch is None or self._batch.rows != tuple(rows):
            self._batch = self._gather(tuple(rows))
        batch = self._batch
        assert logits_SV.shape == (len(batch.rows), self._vocab_size)
        assert len(positions) == len(batch.rows)
        banned = self._banned(batch, positions)
        if batch.penalised or banned is not None:
            logits_SV = logits_SV.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if batch.penalised:
            batch.penalised.penalise_(logits_SV, self._ops)
        logprobs_LV = batch.logprobs.read(logits_SV, self._ops) if batch.logprobs else None
        if banned is not None:
            logits_SV.view(-1).index_fill_(0, banned, -math.inf)
        tokens_S = self._choose(logits_SV, batch, positions)
        if batch.penalised:
            batch.penalised.count(tokens_S)
        if batch.logprobs is None or logprobs_LV is None:
            return Sampled(rows=batch.rows, tokens_S=tokens_S)
        logprobs = batch.logprobs.report(logprobs_LV, tokens_S)
        return Sampled(rows=batch.rows, tokens_S=tokens_S, logprobs=logprobs)

    def _choose(self, logits_SV: Tensor, batch: _Batch, positions: Sequence[int]) -> Tensor:
        tokens_S: Tensor
        if batch.temperature_S1 is None:
            tokens_S = self._ops.sample(logits_SV)
            return tokens_S
        tokens_S = self._ops.sample(
            logits_SV,
            temperature_S1=batch.temperature_S1,
            seeds_S=batch.seeds_S,
            positions_S=self._stage(positions, torch.int64),
            top=batch.top,
            min_p_S1=batch.min_p_S1,
        )
        return tokens_S

    def _banned(self, batch: _Batch, positions: Sequence[int]) -> Tensor | None:
        """The cells of [S, V], flattened, that must not be chosen at these positions."""
        held = [(place, row) for place, row in batch.bans if positions[place] < row.banned_until]
        if not held:
            return None
        places = tuple(place for place, _ in held)
        if self._banned_cells is None or places != self._banned_places:
            cells = [place * self._vocab_size + token for place, row in held for token in row.banned]
            self._banned_places, self._banned_cells = places, self._stage(cells, torch.int64)
        return self._banned_cells

    def _count(self, admission: Admission) -> None:
        if self._counts is None:
            self._counts = TokenCounts(
                vocab_size=self._vocab_size, max_num_rows=self._max_num_rows, device=self._device
            )
        ids, num = self._stage(admission.token_ids, torch.int64), admission.num_prompt_tokens
        self._counts.admit(admission.row, ids[:num], ids[num:])

    def _gather(self, numbers: tuple[int, ...]) -> _Batch:
        self._banned_cells = None
        rows = [self._rows[number] for number in numbers]
        rows_S = self._stage(numbers, torch.int64)
        table_SF = self._table_RF.index_select(0, rows_S)
        return _Batch(
            rows=numbers,
            seeds_S=self._seeds_R.index_select(0, rows_S),
            temperature_S1=None if all(row.greedy for row in rows) else _column(table_SF, "temperature"),
            min_p_S1=_column(table_SF, "min_p") if any(row.uses_min_p for row in rows) else None,
            top=self._top_cut(rows, table_SF),
            penalised=self._penalised(rows, rows_S, table_SF),
            logprobs=self._logprobs(rows),
            bans=tuple((place, row) for place, row in enumerate(rows) if row.banned),
        )

    def _top_cut(self, rows: Sequence[_Row], table_SF: Tensor) -> TopCut | None:
        top_k = {place: row.top_k for place, row in enumerate(rows) if row.uses_top}
        if not top_k:
            return None
        places_C = self._stage(list(top_k), torch.int64)
        table_CF = table_SF.index_select(0, places_C)
        return TopCut(
            places_C=places_C,
            temperature_C1=_column(table_CF, "temperature"),
            top_k_C1=self._stage(list(top_k.values()), torch.int64)[:, None],
            top_p_C1=_column(table_CF, "top_p"),
            num_candidates=max(top_k.values()),
        )

    def _penalised(self, rows: Sequence[_Row], rows_S: Tensor, table_SF: Tensor) -> PenalisedRows | None:
        places = [place for place, row in enumerate(rows) if row.penalised]
        if not places or self._counts is None:
            return None
        places_P = self._stage(places, torch.int64)
        table_PF = table_SF.index_select(0, places_P)
        return PenalisedRows(
            counts=self._counts,
            places_P=places_P,
            rows_P=rows_S.index_select(0, places_P),
            repetition_P1=_column(table_PF, "repetition_penalty"),
            presence_P1=_column(table_PF, "presence_penalty"),
            frequency_P1=_column(table_PF, "frequency_penalty"),
        )

    def _logprobs(self, rows: Sequence[_Row]) -> LogprobRows | None:
        asked = {place: row.logprobs for place, row in enumerate(rows) if row.logprobs is not None}
        if not asked:
            return None
        places_L = self._stage(list(asked), torch.int64)
        return LogprobRows(places=tuple(asked), nums=tuple(asked.values()), places_L=places_L)

    def _stage(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """`values` on the device; from pinned memory, because a copy from any other waits for the device."""
        on_gpu = self._device.type == "cuda"
        return torch.tensor(values, dtype=dtype, pin_memory=on_gpu).to(self._device, non_blocking=True)


def _describe(admission: Admission, vocab_size: int) -> _Row:
    params = admission.sampling
    top_k = min(params.top_k or vocab_size, vocab_size)
    greedy = params.greedy or top_k == 1
    return _Row(
        greedy=greedy,
        top_k=top_k,
        uses_top=not greedy and (top_k < vocab_size or params.top_p < 1),
        uses_min_p=not greedy and params.min_p > 0,
        penalised=params.penalised,
        logprobs=params.logprobs,
        # A checkpoint may name end-of-sequence ids beyond its vocabulary.
        banned=tuple(token for token in admission.banned_until_min if token < vocab_size),
        banned_until=admission.num_prompt_tokens + params.min_tokens,
    )


def _column(table: Tensor, name: str) -> Tensor:
    index = FIELDS.index(name)
    return table[:, index : index + 1]


def _signed(seed: int) -> int:
    """A seed as 64 signed bits: the seed + i of completion i may leave their range."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
