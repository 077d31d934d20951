"""The scheduler, against a simulated device that checks every plan and knows what each page holds."""

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headway.core.config import EngineConfig
from headway.core.request import EngineRequest, FinishReason
from headway.scheduler.pages import IntegrityError, PageAllocator
from headway.sharding.pages import page_groups
from simulated_world import VOCAB, World, make_request, make_world, undisturbed

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
@example(
    shape={
        "run_ahead": 1,
        "windows": (None, 1, 5),
        "page_size": 1,
        "max_num_rows": 3,
        "max_num_tokens": 3,
        "max_model_len": 8,
    },
    full=20,
    seed=204,
)
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
