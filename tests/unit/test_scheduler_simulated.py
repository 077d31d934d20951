"""The scheduler, against a simulated device that checks every plan and knows what each page holds."""

import random
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headway.core.config import EngineConfig
from headway.core.request import EngineRequest, FinishReason, TokenEvent
from headway.core.sampling import SamplingParams
from headway.core.step import Admission, Ledger, SampledToken, StepPlan, StepResult
from headway.scheduler.pages import IntegrityError, PageAllocator
from headway.scheduler.scheduler import Scheduler
from headway.sharding.pages import page_groups

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


# Simulations


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """All settings of a world but its pages."""
    return {
        "run_ahead": draw(st.integers(0, 3)),
        "windows": draw(st.sampled_from([(None,), (None, 6), (8,), (None, 1, 5), (3, None)])),
        "page_size": draw(st.sampled_from([1, 2, 4])),
        "max_num_rows": draw(st.integers(1, 6)),
        "max_num_tokens": draw(st.integers(1, 20)),
        "max_model_len": draw(st.integers(3, 40)),
    }


@st.composite
def worlds(draw: st.DrawFn) -> World:
    shape = draw(shapes())
    return World(num_pages=tuple(draw(st.integers(3, 14)) for _ in shape["windows"]), **shape)


def arrivals(dice: random.Random, longest: int) -> Iterator[EngineRequest]:
    """Requests of all shapes, some with tokens from before a move."""
    for number in range(dice.randrange(1, 14)):
        prompt = dice.randint(1, longest)
        max_tokens = dice.randint(1, 24)
        request = make_request(
            f"r{number}",
            prompt,
            seed=dice.randrange(1000),
            max_tokens=max_tokens,
            min_tokens=dice.choice([0, 0, dice.randint(0, max_tokens)]),
            stop=tuple(dice.sample(range(VOCAB), dice.choice([0, 0, 1, 2]))),
        )
        moved = undisturbed(request, longest + 1)[0][:-1] if dice.random() < 0.3 else []
        yield EngineRequest(
            **{name: getattr(request, name) for name in EngineRequest.__slots__ if name != "output_ids"},
            output_ids=tuple(moved[: dice.randint(0, len(moved))]),
        )


def simulate(world: World, dice: random.Random) -> None:
    queue = deque(arrivals(dice, world.scheduler.max_prompt_tokens))
    abort_rate = dice.choice([0, 0, 0.1])
    while queue or world.scheduler.num_unfinished or world.results:
        while queue and dice.random() < 0.4:
            world.add(queue.popleft())
        if world.requests and dice.random() < abort_rate:
            world.abort(dice.choice(list(world.requests)))
        world.step()


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds(), seed=st.integers(0, 1 << 32))
def test_every_request_ends_once_with_the_tokens_of_an_undisturbed_run(world: World, seed: int) -> None:
    simulate(world, random.Random(seed))
    world.check_outcome()


@pytest.mark.parametrize("growth_pages", [(), (0,), (0, 1)])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds(), seed=st.integers(0, 1 << 32))
def test_nobody_is_preempted_more_often_than_admission_promises(
    growth_pages: tuple[int, ...], world: World, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headway.scheduler.admission.GROWTH_PAGES", growth_pages)
        simulate(world, random.Random(seed))
    world.check_outcome()
    assert world.num_preempted <= len(growth_pages)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=shapes(), full=st.integers(3, 60), seed=st.integers(0, 1 << 32))
def test_more_pages_than_windows_are_said_to_fill_change_nothing(
    shape: dict[str, Any], full: int, seed: int
) -> None:
    config = EngineConfig(**{name: shape[name] for name in ("page_size", "max_num_rows", "max_num_tokens")})
    windows, max_model_len = shape["windows"], shape["max_model_len"]
    groups = page_groups(windows, [1] * len(windows), config, max_model_len)
    enough = [full if group.window is None else group.useful for group in groups]
    ample = [full if group.window is None else 10 * group.useful for group in groups]
    steps = []
    for num_pages in (enough, ample):
        world = World(num_pages=tuple(num_pages), **shape)
        simulate(world, random.Random(seed))
        world.check_outcome()
        steps.append(world.device.num_steps)
        steps.append(world.num_preempted)
    assert steps[:2] == steps[2:]


@pytest.mark.parametrize("run_ahead", [0, 1])
@pytest.mark.parametrize("oversubscribed", [1.2, 2, 4])
def test_an_oversubscribed_pool_finishes_with_few_preemptions(oversubscribed: float, run_ahead: int) -> None:
    num_requests, pages_each = 12, 24
    num_pages = int(num_requests * pages_each / oversubscribed)
    world = make_world(
        num_pages=(num_pages,), max_num_rows=12, max_num_tokens=64, max_model_len=96, run_ahead=run_ahead
    )
    for number in range(num_requests):
        world.add(make_request(f"r{number}", 6 + number, seed=number, max_tokens=80))
    world.drain()
    world.check_outcome()
    assert 1 <= world.num_preempted <= 4


def test_the_checker_finds_a_scheduler_that_leaks_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    monkeypatch.setattr(PageAllocator, "release", lambda self, page: None)
    world.add(make_request())
    with pytest.raises(IntegrityError, match="page 0 of group 0 is in 0 tables, but has 1 references"):
        world.drain()


def test_the_checker_finds_a_scheduler_that_frees_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def release_twice(self: PageAllocator, page: int) -> None:
        self._num_refs[page] = 0
        self._free += (page, page)

    world = make_world()
    monkeypatch.setattr(PageAllocator, "release", release_twice)
    world.add(make_request())
    with pytest.raises(IntegrityError, match="not num_pages 16"):
        world.drain()


def test_the_device_finds_pages_that_are_given_back_too_early() -> None:
    world = make_world(windows=(8,), max_num_rows=2)
    world.scheduler._groups._windowed = ((0, 4),)
    world.add(make_request("a", 9, max_tokens=20))
    world.add(make_request("b", 9, max_tokens=20))
    with pytest.raises(AssertionError, match="overwritten"):
        world.drain()


# Chosen cases


def test_a_late_token_is_not_given_to_the_next_owner_of_its_row() -> None:
    world = make_world(max_num_rows=1, run_ahead=2)
    world.add(make_request("a", seed=1))
    world.step()
    world.step()
    world.abort("a")
    world.add(make_request("b", seed=2))
    world.drain()
    world.check_outcome()
    assert world.tokens["a"] == []


def test_tokens_sampled_for_a_preempted_sequence_are_used_and_it_does_not_run_before() -> None:
    world = make_world(num_pages=(6,), max_num_rows=2, run_ahead=2)
    world.add(make_request("a", 7, max_tokens=14, seed=1))
    world.add(make_request("b", 7, max_tokens=14, seed=2))
    roster = world.scheduler._roster
    while not roster.waiting or not roster.waiting[0].num_preempted:
        world.step()
    b = roster.waiting[0]
    assert (b.request.request_id, b.num_computed, b.num_pending > 0) == ("b", 0, True)
    num_known, num_pending = len(b.token_ids), b.num_pending
    world.abort("a")  # every page is free, and still b must wait
    while b.num_pending:
        assert world.scheduler.plan() is None
        world.commit()
    assert len(b.token_ids) == num_known + num_pending
    plan = world.step()
    assert plan is not None
    assert plan.admissions[0].token_ids == tuple(b.token_ids[: num_known + num_pending])
    world.drain()
    world.check_outcome()


def test_a_preempted_sequence_can_end_while_it_waits() -> None:
    world = make_world(num_pages=(6,), max_num_rows=2, run_ahead=2)
    world.add(make_request("a", 7, max_tokens=14, seed=1))
    world.add(make_request("b", 7, max_tokens=14, seed=2))
    roster = world.scheduler._roster
    while not roster.waiting or not roster.waiting[0].num_pending:
        world.step()
    b = roster.waiting[0]
    b.stop_ids = frozenset(range(VOCAB))
    world.commit()
    assert world.reasons == {"b": FinishReason.STOP}
    assert not roster.waiting
    world.drain()


def test_a_window_lets_a_sequence_outgrow_its_pool_in_chunks_that_fit() -> None:
    world = make_world(num_pages=(3,), windows=(8,), max_model_len=90)
    assert world.scheduler.max_model_len == 90
    world.add(make_request(prompt=60, max_tokens=30))
    world.drain()
    world.check_outcome()


def test_a_pool_smaller_than_its_window_bounds_the_sequence() -> None:
    world = make_world(num_pages=(50, 2), windows=(None, 8), max_model_len=90)
    assert world.scheduler.max_model_len == 8
    world.add(make_request(prompt=3, max_tokens=30))
    world.drain()
    world.check_outcome()
