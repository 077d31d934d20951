"""Greedy output equals transformers' token for token, however the engine cuts, pages and splits the work.

Sampled output depends on a request's seed and positions alone: not on its neighbours, not on preemption.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from checkpoints import Oracle, load_oracle, random_prompts
from driving import make_request, run, tokens
from headway.core.config import EngineConfig
from headway.core.request import EngineRequest
from headway.core.step import StepPlan
from headway.engine.build import solo_engine, thread_engine
from headway.engine.engine import Engine
from headway.model.folder import resolve
from headway.scheduler.scheduler import Scheduler
from headway.worker.rows import RowTables

LENGTHS = [1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 21, 27, 33, 40, 48, 61]
NUM_OUTPUTS = 40
NUM_DEMO_OUTPUTS = 16  # enough to be preempted, at a step of some milliseconds
MAX_NUM_TOKENS = 40  # less than the longest prompt
TIGHT = {4: 40, 16: 12}  # pages by page size, where all requests together need about 240 and 70
ROOMY = {4: 260, 16: 80}


@dataclass
class Plans:
    """What schedulers have planned."""

    made: list[StepPlan] = field(default_factory=list)

    @property
    def num_preempted(self) -> int:
        """Sequences that were admitted again: they start with the prompt and seed that another had."""
        admitted = Counter(
            (admission.token_ids[: admission.num_prompt_tokens], admission.seed)
            for plan in self.made
            for admission in plan.admissions
        )
        return sum(count > 1 for count in admitted.values())

    @property
    def num_chunks(self) -> int:
        """Pieces of prompts that did not reach the prompt's end."""
        return sum(not samples for plan in self.made for samples in plan.samples)

    @property
    def most_rows(self) -> int:
        return max(len(plan.rows) for plan in self.made)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Plans:
    seen = Plans()
    plan = Scheduler.plan

    def recorded(scheduler: Scheduler) -> StepPlan | None:
        made = plan(scheduler)
        if made is not None:
            seen.made.append(made)
        return made

    monkeypatch.setattr(Scheduler, "plan", recorded)
    return seen


def make_engine(oracle: Oracle, tp: int, page_size: int, num_pages: int) -> Engine:
    config = EngineConfig(
        tp=tp,
        device="cpu",
        page_size=page_size,
        num_pages=num_pages,
        max_num_rows=16,
        max_num_tokens=MAX_NUM_TOKENS,
    )
    return solo_engine(oracle.folder, config) if tp == 1 else thread_engine(oracle.folder, config)


def generate(engine: Engine, requests: list[EngineRequest]) -> dict[str, tuple[int, ...]]:
    try:
        return {name: tokens(events) for name, events in run(engine, requests).items()}
    finally:
        engine.close()


def greedy_requests(oracle: Oracle, num_outputs: int = NUM_OUTPUTS) -> list[EngineRequest]:
    prompts = random_prompts(LENGTHS, vocab_size=oracle.model.config.vocab_size)
    return [make_request(str(len(prompt)), prompt, max_tokens=num_outputs) for prompt in prompts]


def wanted(oracle: Oracle, num_outputs: int = NUM_OUTPUTS) -> dict[str, tuple[int, ...]]:
    return {
        request.request_id: oracle.greedy(request.prompt_ids, num_outputs)
        for request in greedy_requests(oracle)
    }


@pytest.fixture(scope="module")
def gqa_wanted(gqa: Oracle) -> dict[str, tuple[int, ...]]:
    return wanted(gqa)


@pytest.fixture(scope="module")
def demo() -> Oracle:
    return load_oracle(resolve("demo"))


@pytest.fixture(scope="module")
def demo_wanted(demo: Oracle) -> dict[str, tuple[int, ...]]:
    return wanted(demo, NUM_DEMO_OUTPUTS)


# Greedy


@pytest.mark.parametrize("page_size", [4, 16])
@pytest.mark.parametrize("tp", [1, 2, 3, 4])
def test_sixteen_prompts_in_one_batch_continue_as_in_transformers(
    gqa: Oracle, gqa_wanted: dict[str, tuple[int, ...]], plans: Plans, tp: int, page_size: int
) -> None:
    engine = make_engine(gqa, tp, page_size, ROOMY[page_size])
    assert generate(engine, greedy_requests(gqa)) == gqa_wanted
    assert plans.most_rows == 16
    assert plans.num_chunks > 0
    assert plans.num_preempted == 0


@pytest.mark.parametrize("page_size", [4, 16])
@pytest.mark.parametrize("tp", [1, 2, 3, 4])
def test_a_pool_so_small_that_sequences_are_preempted_changes_no_token(
    gqa: Oracle, gqa_wanted: dict[str, tuple[int, ...]], plans: Plans, tp: int, page_size: int
) -> None:
    engine = make_engine(gqa, tp, page_size, TIGHT[page_size])
    assert generate(engine, greedy_requests(gqa)) == gqa_wanted
    assert plans.num_preempted > 0


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_every_head_its_own_kv_head_with_biases_and_a_tied_head(mha: Oracle, plans: Plans, tp: int) -> None:
    engine = make_engine(mha, tp, 4, TIGHT[4])
    assert generate(engine, greedy_requests(mha)) == wanted(mha)
    assert plans.num_preempted > 0


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
def test_the_demo_model_continues_as_in_transformers(
    demo: Oracle, demo_wanted: dict[str, tuple[int, ...]], plans: Plans, tp: int
) -> None:
    engine = make_engine(demo, tp, 4, TIGHT[4])
    assert generate(engine, greedy_requests(demo, NUM_DEMO_OUTPUTS)) == demo_wanted
    assert plans.num_preempted > 0


def test_the_comparison_finds_a_planted_bug_rows_that_are_granted_each_others_pages(
    gqa: Oracle, gqa_wanted: dict[str, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = RowTables.apply

    def wrong(tables: RowTables, plan: StepPlan) -> None:
        apply(tables, plan)
        tables.tables[0][1] = tables.tables[0][0]

    monkeypatch.setattr(RowTables, "apply", wrong)
    found = generate(make_engine(gqa, 1, 4, ROOMY[4]), greedy_requests(gqa))
    assert [name for name in found if found[name] != gqa_wanted[name]] == ["1", "2"]


def test_a_sequence_ends_at_the_end_of_the_context(gqa: Oracle) -> None:
    (prompt,) = random_prompts([250])
    found = generate(make_engine(gqa, 2, 16, 16), [make_request("a", prompt, max_tokens=100)])
    assert found["a"] == gqa.greedy(prompt, 6)


# Sampled

SAMPLING: dict[str, Any] = {
    "temperature": 0.9,
    "top_p": 0.9,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
    "max_tokens": NUM_OUTPUTS,
}


def sampled_requests() -> list[EngineRequest]:
    return [
        make_request(str(len(prompt)), prompt, seed=seed, **SAMPLING)
        for seed, prompt in enumerate(random_prompts(LENGTHS))
    ]


@pytest.fixture(scope="module")
def sampled_alone(gqa: Oracle) -> dict[str, tuple[int, ...]]:
    """Each request's tokens when it has the engine to itself."""
    engine = make_engine(gqa, 1, 4, ROOMY[4])
    found = {}
    for request in sampled_requests():
        found |= {name: tokens(events) for name, events in run(engine, [request]).items()}
    engine.close()
    return found


def test_a_seed_gives_the_same_tokens_alone_and_among_fifteen_others(
    gqa: Oracle, sampled_alone: dict[str, tuple[int, ...]], plans: Plans
) -> None:
    assert generate(make_engine(gqa, 1, 4, ROOMY[4]), sampled_requests()) == sampled_alone
    assert plans.most_rows == 16


def test_a_seed_gives_the_same_tokens_after_preemption(
    gqa: Oracle, sampled_alone: dict[str, tuple[int, ...]], plans: Plans
) -> None:
    assert generate(make_engine(gqa, 1, 4, TIGHT[4]), sampled_requests()) == sampled_alone
    assert plans.num_preempted > 0


def test_other_seeds_give_other_tokens(gqa: Oracle, sampled_alone: dict[str, tuple[int, ...]]) -> None:
    others = [replace(request, seed=request.seed + 100) for request in sampled_requests()]
    found = generate(make_engine(gqa, 1, 4, ROOMY[4]), others)
    assert all(found[name] != sampled_alone[name] for name in found)


@pytest.mark.parametrize("num_delivered", [1, 7, NUM_OUTPUTS - 1])
@pytest.mark.parametrize("sampling", [SAMPLING, {"max_tokens": NUM_OUTPUTS}], ids=["sampled", "greedy"])
def test_a_request_resumed_with_its_delivered_tokens_continues_exactly(
    gqa: Oracle, sampling: dict[str, Any], num_delivered: int
) -> None:
    requests = [
        make_request(str(index), prompt, **sampling)
        for index, prompt in enumerate(random_prompts([3, 30, 61]))
    ]
    whole = generate(make_engine(gqa, 1, 4, ROOMY[4]), requests)
    resumed = [replace(request, output_ids=whole[request.request_id][:num_delivered]) for request in requests]
    rest = generate(make_engine(gqa, 1, 4, ROOMY[4]), resumed)
    assert rest == {name: found[num_delivered:] for name, found in whole.items()}


# Log-probabilities


@pytest.mark.parametrize("tp", [1, 3])
def test_logprobs_are_those_of_transformers(gqa: Oracle, tp: int) -> None:
    requests = [
        replace(request, sampling=replace(request.sampling, logprobs=5)) for request in greedy_requests(gqa)
    ]
    engine = make_engine(gqa, tp, 4, TIGHT[4])
    found = run(engine, requests)
    engine.close()
    for request in requests:
        events = found[request.request_id]
        expected = gqa.logprobs(request.prompt_ids, tokens(events))
        for event, row in zip(events, expected, strict=True):
            chosen, *likeliest = event.logprobs
            assert chosen.token_id == event.token_id
            assert [entry.token_id for entry in likeliest] == row.topk(5).indices.tolist()
            for entry in event.logprobs:
                assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
