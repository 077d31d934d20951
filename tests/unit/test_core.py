"""Request parameters and the step ledger."""

import copy
import math

import pytest

from headway.core.errors import HeadwayError, InvalidRequest, StartError, StepMismatch, counted
from headway.core.limits import BOUNDS
from headway.core.sampling import NUMERIC, SamplingParams
from headway.core.step import Ledger, PageGrant, StepPlan


@pytest.mark.parametrize("field", [*NUMERIC, "seed", "logprobs"])
def test_each_number_is_refused_just_outside_its_bounds(field: str) -> None:
    bound = BOUNDS[field]
    step = 1 if bound.integer else 1e-3
    for value in (bound.min - step, bound.max + step, 1 << 63, 10**400, math.nan, math.inf, -math.inf, "1"):
        with pytest.raises(InvalidRequest) as caught:
            SamplingParams(**{field: value})
        assert caught.value.field == field
        assert str(bound) in str(caught.value)


@pytest.mark.parametrize("field", NUMERIC)
def test_each_number_is_taken_at_its_bounds(field: str) -> None:
    bound = BOUNDS[field]
    for value in (bound.min, bound.max):
        number = int(value) if bound.integer else value
        wide = {"max_tokens": int(BOUNDS["max_tokens"].max)} if field == "min_tokens" else {}
        assert getattr(SamplingParams(**(wide | {field: number})), field) == number


def test_stops_are_checked_one_by_one() -> None:
    with pytest.raises(InvalidRequest, match=r"stop\[1\] must be 1 to 256 characters"):
        SamplingParams(stop=("fine", ""))
    with pytest.raises(InvalidRequest, match=r"stop must be a list"):
        SamplingParams(stop="text")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"stop_token_ids\[0\]"):
        SamplingParams(stop_token_ids=(-1,))


def plan(step: int, *grants: PageGrant, rows: tuple[int, ...] = (), num: tuple[int, ...] = ()) -> StepPlan:
    return StepPlan(step=step, grants=grants, rows=rows, num_tokens=num, samples=(False,) * len(rows))


def test_ledgers_agree_on_the_same_plans_and_differ_after_a_lost_one() -> None:
    first = plan(1, PageGrant(row=0, group=0, pages=(3, 4)), rows=(0,), num=(5,))
    second = plan(2, PageGrant(row=0, group=0, pages=(9,)), rows=(0,), num=(1,))
    third = plan(3, rows=(0,), num=(1,))
    leader, faithful, lossy = Ledger(), Ledger(), Ledger()
    digests = [leader.apply(p) for p in (first, second, third)]
    assert [faithful.apply(p) for p in (first, second, third)] == digests
    assert lossy.apply(first) == digests[0]
    assert lossy.apply(third) != digests[2]


@pytest.mark.parametrize(
    "error",
    [StartError("no room"), InvalidRequest("n", "1 for a stream", 3), StepMismatch(1, 7, "its pages differ")],
)
def test_an_error_is_the_same_after_a_journey(error: HeadwayError) -> None:
    arrived = copy.copy(error)
    assert type(arrived) is type(error)
    assert (str(arrived), vars(arrived)) == (str(error), vars(error))


def test_one_is_no_plural() -> None:
    assert [counted(number, "GPU") for number in (0, 1, 2)] == ["0 GPUs", "1 GPU", "2 GPUs"]
