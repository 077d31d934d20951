"""The scheduler's rules, one by one; test_scheduler_simulated.py has them all at once."""

import pytest

from headway.core.errors import ConfigError, DuplicateRequest, InvalidRequest, StepMismatch
from headway.core.request import EngineRequest, FinishReason, TokenEvent
from headway.core.sampling import SamplingParams
from headway.core.step import SampledToken, StepPlan, StepResult
from headway.scheduler.scheduler import Scheduler


def make_request(name: str = "a", prompt: int = 5, **options) -> EngineRequest:
    stop, output = options.pop("stop", ()), options.pop("output", ())
    return EngineRequest(
        request_id=name,
        prompt_ids=tuple(range(prompt)),
        sampling=SamplingParams(**{"max_tokens": 8, **options}),
        seed=1,
        stop_token_ids=stop,
        output_ids=output,
    )


def make_scheduler(*requests: EngineRequest, **changes) -> Scheduler:
    settings = {"num_pages": (16,), "windows": (None,), "page_size": 4, "max_model_len": 40}
    limits = {"max_num_rows": 4, "max_num_tokens": 16}
    scheduler = Scheduler(**(settings | limits | changes))
    for request in requests:
        scheduler.add(request)
    return scheduler


def plan(scheduler: Scheduler) -> StepPlan:
    made = scheduler.plan()
    assert made is not None
    return made


def commit(scheduler: Scheduler, made: StepPlan, token: int = 3) -> list[TokenEvent]:
    """Every row that samples gets `token`."""
    rows = [row for row, samples in zip(made.rows, made.samples, strict=True) if samples]
    tokens = tuple(SampledToken(row=row, token_id=token) for row in rows)
    return scheduler.commit(StepResult(step=made.step, tokens=tokens))


def step(scheduler: Scheduler, token: int = 3) -> StepPlan:
    made = plan(scheduler)
    commit(scheduler, made, token)
    scheduler.check()
    return made


def reasons(scheduler: Scheduler, *tokens: int) -> list[FinishReason | None]:
    """What the events say when the only row is sampled these tokens, a step each."""
    return [event.finish_reason for token in tokens for event in commit(scheduler, plan(scheduler), token)]


# What a plan holds


def test_nothing_to_do_gives_no_plan() -> None:
    assert make_scheduler().plan() is None


def test_a_long_prompt_is_computed_in_chunks_and_sampled_once_at_its_end() -> None:
    scheduler = make_scheduler(make_request(prompt=10, max_tokens=2), max_num_tokens=4)
    plans = [step(scheduler) for _ in range(4)]
    assert [(made.num_tokens, made.samples) for made in plans] == [
        ((4,), (False,)),
        ((4,), (False,)),
        ((2,), (True,)),
        ((1,), (True,)),
    ]


def test_decoding_rows_come_before_chunks_and_newcomers_share_what_is_left_of_the_budget() -> None:
    scheduler = make_scheduler(make_request("a", 3), max_num_tokens=6)
    step(scheduler)
    scheduler.add(make_request("b", 8))
    scheduler.add(make_request("c", 8))
    made = step(scheduler)
    assert (made.rows, made.num_tokens, made.samples) == ((0, 1), (1, 5), (True, False))
    made = step(scheduler)
    assert (made.rows, made.num_tokens, made.samples) == ((0, 1, 2), (1, 3, 2), (True, True, False))


def test_a_prompt_of_one_token_is_among_the_decoding_rows() -> None:
    made = step(make_scheduler(make_request("a", 5), make_request("b", 1)))
    assert (made.rows, made.num_tokens) == ((1, 0), (1, 5))


def test_more_rows_than_tokens_in_a_step_are_not_admitted() -> None:
    scheduler = make_scheduler(*(make_request(name, 1) for name in "abcd"), max_num_tokens=2)
    assert [step(scheduler).rows for _ in range(3)] == [(0, 1)] * 3


def test_pages_are_granted_when_needed_and_not_before_alike_in_every_group() -> None:
    scheduler = make_scheduler(make_request(prompt=7), num_pages=(16, 16), windows=(None, 8))
    grants = [[(grant.group, len(grant.pages)) for grant in step(scheduler).grants] for _ in range(4)]
    assert grants == [[(0, 2), (1, 2)], [], [(0, 1), (1, 1)], []]


def test_a_step_is_planned_before_the_tokens_of_the_last_are_known() -> None:
    scheduler = make_scheduler(make_request(prompt=3, max_tokens=3))
    assert [plan(scheduler).num_tokens for _ in range(3)] == [(3,), (1,), (1,)]
    assert scheduler.plan() is None, "max_tokens is reached by count"


def test_ended_rows_wait_for_the_next_plan_with_work_and_may_be_taken_again_in_it() -> None:
    scheduler = make_scheduler(make_request("a", max_tokens=1), max_num_rows=1)
    step(scheduler)
    assert scheduler.plan() is None
    scheduler.add(make_request("b"))
    made = plan(scheduler)
    assert made.ended == (0,)
    assert [admission.row for admission in made.admissions] == [0]


def test_an_admission_bans_stop_ids_only_while_min_tokens_are_missing() -> None:
    fresh = make_request("a", min_tokens=3, stop=(1, 2))
    moved = make_request("b", min_tokens=3, stop=(1, 2), output=(5, 6, 7))
    made = plan(make_scheduler(fresh, moved))
    assert [admission.banned_until_min for admission in made.admissions] == [(1, 2), ()]
    assert [admission.num_prompt_tokens for admission in made.admissions] == [5, 5]
    assert made.admissions[1].token_ids == (0, 1, 2, 3, 4, 5, 6, 7)


# When a sequence ends


def test_a_stop_id_ends_a_sequence_and_is_its_last_token() -> None:
    scheduler = make_scheduler(make_request(stop=(7,)))
    step(scheduler)
    (event,) = commit(scheduler, plan(scheduler), token=7)
    assert (event.token_id, event.finish_reason) == (7, FinishReason.STOP)
    assert scheduler.num_unfinished == 0
    assert scheduler.load().free_pages == 16


def test_a_stop_id_counts_only_from_min_tokens_on_tokens_before_a_move_included() -> None:
    scheduler = make_scheduler(make_request(stop=(7,), min_tokens=4, output=(1, 2)))
    assert reasons(scheduler, 7, 7) == [None, FinishReason.STOP]


def test_max_tokens_counts_tokens_from_before_a_move() -> None:
    scheduler = make_scheduler(make_request(max_tokens=4, output=(1, 2)))
    assert reasons(scheduler, 3, 3) == [None, FinishReason.LENGTH]


def test_a_sequence_ends_with_the_context() -> None:
    scheduler = make_scheduler(make_request(prompt=5), max_model_len=7)
    assert reasons(scheduler, 3, 3) == [None, FinishReason.LENGTH]


def test_tokens_of_steps_planned_past_a_stop_are_dropped() -> None:
    scheduler = make_scheduler(make_request(stop=(7,)))
    plans = [plan(scheduler) for _ in range(3)]
    events = [event for made in plans for event in commit(scheduler, made, token=7)]
    assert [event.finish_reason for event in events] == [FinishReason.STOP]


# Pages


def test_a_newcomer_leaves_a_page_for_each_running_row_and_itself() -> None:
    scheduler = make_scheduler(make_request("a", 4, max_tokens=20), num_pages=(6,))
    step(scheduler)
    scheduler.add(make_request("b", 9, max_tokens=12))
    assert not step(scheduler).admissions, "4 pages are free: b needs 3, and 1 for each to grow"
    scheduler.abort("b")
    scheduler.add(make_request("c", 8, max_tokens=12))
    assert len(step(scheduler).admissions) == 1


def test_nobody_overtakes_the_first_in_the_queue() -> None:
    scheduler = make_scheduler(make_request("a", 4, max_tokens=20), num_pages=(6,))
    step(scheduler)
    scheduler.add(make_request("large", 18))
    scheduler.add(make_request("small", 1))
    assert not step(scheduler).admissions


def test_a_decoding_row_without_a_page_preempts_the_latest_arrival_which_is_first_to_come_back() -> None:
    requests = [make_request(name, 7, max_tokens=20) for name in "abc"]
    scheduler = make_scheduler(*requests, num_pages=(9,), max_num_tokens=64)
    assert step(scheduler).rows == (0, 1, 2)
    while not (made := step(scheduler)).ended:
        assert made.rows == (0, 1, 2)
    assert (made.ended, made.rows) == ((2,), (0, 1))
    scheduler.add(make_request("d", 1))
    while not (made := step(scheduler)).admissions:
        pass
    assert len(made.admissions[0].token_ids) > 7, "not d, but one that was preempted, with all its tokens"


def test_the_longest_prompt_that_fits_the_pool_finishes() -> None:
    scheduler = make_scheduler(num_pages=(5,), max_model_len=1000)
    assert (scheduler.max_model_len, scheduler.max_prompt_tokens) == (20, 19)
    scheduler.add(make_request(prompt=19))
    step(scheduler)
    assert reasons(scheduler, 3) == [FinishReason.LENGTH]


@pytest.mark.parametrize("page_size", [1, 2, 4, 5])
@pytest.mark.parametrize("prompt", [1, 30])
def test_a_window_of_four_pages_keeps_at_most_six(page_size: int, prompt: int) -> None:
    window = {"num_pages": (100,), "windows": (4 * page_size,), "page_size": page_size, "max_model_len": 100}
    scheduler = make_scheduler(make_request(prompt=prompt, max_tokens=60), **window)
    held = []
    while scheduler.num_unfinished:
        if step(scheduler).num_tokens == (1,) and scheduler.num_unfinished:
            held.append(100 - scheduler.load().free_pages)
    assert max(held) <= 6


@pytest.mark.parametrize("page_size", [16, 64])
def test_at_32k_tokens_a_4096_window_keeps_an_eighth_of_the_pages_and_one(page_size: int) -> None:
    full = 32_768 // page_size
    scheduler = make_scheduler(
        make_request(prompt=32_766),
        num_pages=(full + 1, full + 1),
        windows=(None, 4096),
        page_size=page_size,
        max_num_tokens=1024,
        max_model_len=32_768,
    )
    while step(scheduler).num_tokens != (1022,):
        pass
    made = plan(scheduler)
    held = [pages.num_pages - pages.num_free for pages in scheduler._groups.allocators]
    assert made.num_tokens == (1,)
    assert held[0] == full
    assert full // 8 <= held[1] <= full // 8 + 1


# Requests in and out


def test_an_id_in_use_is_refused_and_free_again_after_its_end() -> None:
    scheduler = make_scheduler(make_request("a"))
    with pytest.raises(DuplicateRequest, match="request_id 'a' is in use"):
        scheduler.add(make_request("a"))
    scheduler.abort("a")
    scheduler.add(make_request("a"))


TOO_LONG = "prompt must be 1 to 39 tokens (the context and the page pool), got 40"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (make_request(prompt=40), TOO_LONG),
        (make_request(prompt=38, output=(1, 2)), TOO_LONG),
        (make_request(prompt=0), TOO_LONG.replace("got 40", "got 0")),
        (make_request(max_tokens=2, output=(1, 2)), "output_ids must be fewer than max_tokens (2), got 2"),
    ],
)
def test_a_request_that_cannot_run_is_refused_with_field_limit_and_value(
    request_: EngineRequest, message: str
) -> None:
    scheduler = make_scheduler()
    with pytest.raises(InvalidRequest) as caught:
        scheduler.add(request_)
    assert str(caught.value) == message
    assert scheduler.num_unfinished == 0


def test_an_abort_frees_pages_at_once_and_an_unknown_id_is_not_an_error() -> None:
    scheduler = make_scheduler(make_request("a"))
    step(scheduler)
    assert scheduler.load().free_pages == 14
    assert scheduler.abort("a")
    assert scheduler.load().free_pages == 16
    assert not scheduler.abort("a")


def test_after_a_failed_step_all_are_dropped_and_new_requests_run() -> None:
    scheduler = make_scheduler(*(make_request(name) for name in "abc"), max_num_rows=2)
    plan(scheduler)
    plan(scheduler)
    assert scheduler.drop_all() == ["a", "b", "c"]
    scheduler.check()
    assert (scheduler.num_unfinished, scheduler.load().free_pages) == (0, 16)
    scheduler.add(make_request("d", max_tokens=2))
    made = plan(scheduler)
    assert (made.step, sorted(made.ended)) == (3, [0, 1])
    assert [event.request_id for event in commit(scheduler, made)] == ["d"]


def test_a_result_of_another_step_or_of_other_rows_is_refused() -> None:
    scheduler = make_scheduler(make_request("a"))
    made = plan(scheduler)
    other_row = StepResult(step=1, tokens=(SampledToken(row=3, token_id=1),))
    with pytest.raises(StepMismatch, match="rank 0 disagrees at step 1"):
        scheduler.commit(other_row)
    with pytest.raises(StepMismatch, match="expected none"):
        commit(scheduler, made)


def test_the_load_counts_rows_queue_pages_and_steps() -> None:
    scheduler = make_scheduler(
        make_request("a"), make_request("b"), num_pages=(16, 9), windows=(None, 8), max_num_rows=1
    )
    assert scheduler.load().step == 0
    step(scheduler)
    load = scheduler.load()
    assert (load.num_running, load.num_waiting, load.step) == (1, 1, 1)
    assert (load.free_pages, load.num_pages) == (7, 9), "those of the tightest group"


def test_a_pool_in_which_nothing_can_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_model_len must be at least 2"):
        make_scheduler(num_pages=(1,), page_size=1)
