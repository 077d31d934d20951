"""A scheduler and a simulated device, which checks every plan and knows what each page holds."""

import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from headway.core.request import EngineRequest, FinishReason, TokenEvent
from headway.core.sampling import SamplingParams
from headway.core.step import Admission, Ledger, SampledToken, StepPlan, StepResult
from headway.scheduler.scheduler import Scheduler

VOCAB = 11


def sample(tokens: Iterable[int], seed: int, banned: tuple[int, ...]) -> int:
    """The simulated model: a token that depends on all before it, so that none may be lost or swapped."""
    tokens = list(tokens)
    token = zlib.crc32(bytes([*tokens, seed % 251, len(tokens) % 251])) % VOCAB
    while token in banned:
        token = (token + 1) % VOCAB
    return token


def undisturbed(request: EngineRequest, max_model_len: int) -> tuple[list[int], FinishReason]:
    """What a request gives when nothing else runs: its new tokens, and why it ends."""
    tokens = [*request.prompt_ids, *request.output_ids]
    start, sampling = len(tokens), request.sampling
    while True:
        num_outputs = len(tokens) - len(request.prompt_ids)
        banned = request.stop_token_ids if num_outputs < sampling.min_tokens else ()
        tokens.append(sample(tokens, request.seed, banned))
        if tokens[-1] in request.stop_token_ids and num_outputs + 1 >= sampling.min_tokens:
            return tokens[start:], FinishReason.STOP
        if num_outputs + 1 == sampling.max_tokens or len(tokens) == max_model_len:
            return tokens[start:], FinishReason.LENGTH


@dataclass
class Row:
    admission: Admission
    tokens: list[int]
    tables: list[list[int]]
    length: int = 0

    def sample(self) -> int:
        waits = len(self.tokens) - self.admission.num_prompt_tokens < self.admission.sampling.min_tokens
        return sample(self.tokens, self.admission.seed, self.admission.banned_until_min if waits else ())


@dataclass
class Device:
    """Executes plans as a rank does. A slot knows whose token it holds, so a page reused too early shows."""

    page_size: int
    windows: tuple[int | None, ...]
    max_num_rows: int
    max_num_tokens: int
    rows: dict[int, Row] = field(default_factory=dict)
    slots: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    num_steps: int = 0

    def execute(self, plan: StepPlan) -> StepResult:
        assert self.ledger.apply(plan) == plan.digest
        self.num_steps += 1
        assert plan.step == self.num_steps < 10_000, "no end in sight"
        self._take_changes(plan)
        self._check_shape(plan)
        work = list(zip(plan.rows, plan.num_tokens, plan.samples, strict=True))
        for row, count, _ in work:
            self._write(self.rows[row], count)
        tokens = []
        for number, count, samples in work:
            row = self.rows[number]
            self._read(row, row.length)
            row.length += count
            self._read(row, row.length - 1)
            assert samples == (row.length == len(row.tokens)), "samples exactly at the last known token"
            if samples:
                row.tokens.append(row.sample())
                tokens.append(SampledToken(row=number, token_id=row.tokens[-1]))
        return StepResult(step=plan.step, tokens=tuple(tokens))

    def _take_changes(self, plan: StepPlan) -> None:
        assert len(set(plan.ended)) == len(plan.ended)
        for row in plan.ended:
            del self.rows[row]  # KeyError: a row ended that was not taken
        for admission in plan.admissions:
            assert admission.row not in self.rows
            assert 0 <= admission.row < self.max_num_rows
            tables: list[list[int]] = [[] for _ in self.windows]
            self.rows[admission.row] = Row(admission, list(admission.token_ids), tables)
        for grant in plan.grants:
            self.rows[grant.row].tables[grant.group] += grant.pages

    def _check_shape(self, plan: StepPlan) -> None:
        assert plan.rows, "a plan has work"
        assert len(set(plan.rows)) == len(plan.rows) <= self.max_num_rows
        assert 0 < sum(plan.num_tokens) <= self.max_num_tokens
        assert all(count > 0 for count in plan.num_tokens)
        decodes = [
            count == 1 and samples for count, samples in zip(plan.num_tokens, plan.samples, strict=True)
        ]
        assert decodes == sorted(decodes, reverse=True), "rows with one token and a sample come first"
        for row, count in zip(plan.rows, plan.num_tokens, strict=True):
            num_pages = -(-(self.rows[row].length + count) // self.page_size)
            assert all(len(table) == num_pages for table in self.rows[row].tables), "pages as needed, no more"

    def _write(self, row: Row, count: int) -> None:
        for group, table in enumerate(row.tables):
            for position in range(row.length, row.length + count):
                assert position < len(row.tokens)
                self.slots[group, self._slot(table, position)] = (id(row), position)

    def _read(self, row: Row, query: int) -> None:
        for group, (table, window) in enumerate(zip(row.tables, self.windows, strict=True)):
            for position in range(0 if window is None else max(0, query - window + 1), query + 1):
                assert self.slots[group, self._slot(table, position)] == (id(row), position), "overwritten"

    def _slot(self, table: list[int], position: int) -> int:
        return table[position // self.page_size] * self.page_size + position % self.page_size


class World:
    """A scheduler and a device, `run_ahead` launched steps apart, and what became of every request."""

    def __init__(self, *, run_ahead: int = 0, **settings) -> None:
        self.scheduler = Scheduler(**settings)
        self.device = Device(
            settings["page_size"], settings["windows"], settings["max_num_rows"], settings["max_num_tokens"]
        )
        self.run_ahead = run_ahead
        self.results: deque[StepResult] = deque()
        self.requests: dict[str, EngineRequest] = {}
        self.tokens: dict[str, list[int]] = {}
        self.reasons: dict[str, FinishReason] = {}
        self.num_preempted = 0

    def add(self, request: EngineRequest) -> None:
        self.scheduler.add(request)
        self.requests[request.request_id] = request
        self.tokens[request.request_id] = []

    def abort(self, request_id: str) -> None:
        live = request_id not in self.reasons
        assert self.scheduler.abort(request_id) == live
        if live:
            self.reasons[request_id] = FinishReason.ABORT

    def step(self) -> StepPlan | None:
        """Plan and launch; commit what is more than `run_ahead` behind, or the oldest if there is no plan."""
        plan = self.scheduler.plan()
        self.scheduler.check()
        if plan is not None:
            self.results.append(self.device.execute(plan))
        else:
            assert self.results or not self.scheduler.num_unfinished, "deadlock"
        if self.results and (plan is None or len(self.results) > self.run_ahead):
            self.commit()
        return plan

    def commit(self) -> list[TokenEvent]:
        live = {s.request.request_id: s.num_preempted for s in self.scheduler._roster.by_id.values()}
        self.num_preempted = max([self.num_preempted, *live.values()])
        events = self.scheduler.commit(self.results.popleft())
        self.scheduler.check()
        for event in events:
            assert event.request_id not in self.reasons, "nothing behind the end"
            assert event.token_id is not None
            self.tokens[event.request_id].append(event.token_id)
            if event.finish_reason is not None:
                self.reasons[event.request_id] = event.finish_reason
        return events

    def drain(self) -> None:
        while self.scheduler.num_unfinished or self.results:
            self.step()

    def check_outcome(self) -> None:
        """Every request ended once, with the tokens of an undisturbed run; no page and no row is left."""
        assert self.reasons.keys() == self.requests.keys()
        for request_id, request in self.requests.items():
            tokens, reason = undisturbed(request, self.scheduler.max_model_len)
            if self.reasons[request_id] is FinishReason.ABORT:
                assert self.tokens[request_id] == tokens[: len(self.tokens[request_id])]
            else:
                assert (self.tokens[request_id], self.reasons[request_id]) == (tokens, reason)
        assert all(pages.num_free == pages.num_pages for pages in self.scheduler._groups.allocators)
        assert self.scheduler.load().step == self.device.num_steps


def make_request(
    name: str = "a", prompt: int = 5, *, output: tuple[int, ...] = (), **options
) -> EngineRequest:
    stop = options.pop("stop", ())
    seed = options.pop("seed", 1)
    return EngineRequest(
        request_id=name,
        prompt_ids=tuple(index % VOCAB for index in range(prompt)),
        sampling=SamplingParams(**{"max_tokens": 8, **options}),
        seed=seed,
        stop_token_ids=stop,
        output_ids=output,
    )


def make_world(**changes) -> World:
    settings = {"num_pages": (16,), "windows": (None,), "page_size": 4, "max_model_len": 40}
    limits = {"max_num_rows": 4, "max_num_tokens": 16}
    return World(**(settings | limits | changes))
