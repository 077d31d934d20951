"""One rank: its tables, what the model is given, and steps launched ahead of their results.

Shape suffixes: T tokens of the step, B rows that decode, S rows that prefill, P pages of a table.
"""

from collections import deque
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from checkpoints import Oracle, random_prompts
from driving import make_request
from headway.core.config import EngineConfig
from headway.core.errors import StepMismatch
from headway.core.request import EngineRequest
from headway.core.sampling import SamplingParams
from headway.core.step import Admission, Ledger, PageGrant, StepPlan
from headway.engine.local import SoloRanks
from headway.model.batch import ModelInput
from headway.model.collectives import SoloCollectives
from headway.model.decoder import Decoder
from headway.scheduler.scheduler import Scheduler
from headway.worker.inputs import model_input, num_decode_rows
from headway.worker.rank import Rank
from headway.worker.rows import RowTables
from headway.worker.shard import Shard

CPU = torch.device("cpu")
PAGE_SIZE = 4


def admission(row: int, *token_ids: int) -> Admission:
    return Admission(
        row=row,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        sampling=SamplingParams(temperature=0),
        seed=0,
    )


def grant(row: int, *pages: int, group: int = 0) -> PageGrant:
    return PageGrant(row=row, group=group, pages=pages)


# Tables


def make_tables(num_groups: int = 1) -> RowTables:
    return RowTables(max_num_rows=4, num_groups=num_groups, page_size=4, max_model_len=24)


def test_granted_pages_are_appended_to_the_row_in_each_group() -> None:
    tables = make_tables(num_groups=2)
    first = (grant(2, 5, 3), grant(2, 1, 0, group=1))
    tables.apply(StepPlan(step=1, admissions=(admission(2, 7, 8, 9),), grants=first))
    tables.apply(StepPlan(step=2, grants=(grant(2, 4), grant(2, 2, group=1))))
    assert tables.tables[0][2, :3].tolist() == [5, 3, 4]
    assert tables.tables[1][2, :3].tolist() == [1, 0, 2]


def test_a_rows_next_tokens_follow_what_has_been_computed() -> None:
    tables = make_tables()
    tables.apply(StepPlan(step=1, admissions=(admission(1, 5, 6, 7, 8),)))
    assert tables.token_ids(1, 3).tolist() == [5, 6, 7]
    tables.lengths[1] = 3
    assert tables.token_ids(1, 1).tolist() == [8]


def test_a_row_is_taken_over_in_the_plan_that_ends_it_and_begins_with_no_page() -> None:
    tables = make_tables()
    tables.apply(StepPlan(step=1, admissions=(admission(0, 5, 6),), grants=(grant(0, 3, 2),)))
    tables.lengths[0] = 2
    plan = StepPlan(step=2, ended=(0,), admissions=(admission(0, 9),), grants=(grant(0, 1),))
    tables.apply(plan)
    assert tables.lengths[0] == 0
    assert tables.token_ids(0, 1).tolist() == [9]
    assert tables.tables[0][0, 0] == 1


# What the model is given


def mixed_step() -> tuple[StepPlan, RowTables, Tensor]:
    """Rows 2 and 0 decode at lengths 5 and 3; row 1 begins with 3 of 6 tokens, row 3 ends its prompt."""
    tables = make_tables(num_groups=2)
    pages = {2: (9, 4), 0: (7,), 1: (0,), 3: (5, 6)}
    tokens = {2: (20, 21, 22, 23, 24), 0: (1, 2, 3), 1: (10, 11, 12, 13, 14, 15), 3: (30, 31, 32, 33, 34)}
    tables.apply(
        StepPlan(
            step=1,
            admissions=tuple(admission(row, *ids) for row, ids in tokens.items()),
            grants=tuple(
                grant(row, *(page + 10 * group for page in its), group=group)
                for row, its in pages.items()
                for group in (0, 1)
            ),
        )
    )
    tables.lengths[:] = [3, 0, 5, 3]
    plan = StepPlan(step=2, rows=(2, 0, 1, 3), num_tokens=(1, 1, 3, 2), samples=(True, True, False, True))
    return plan, tables, torch.tensor([100, 101, 102, 103])


def made_input() -> ModelInput:
    plan, tables, last_token = mixed_step()
    return model_input(plan, tables, last_token, page_size=PAGE_SIZE, device=CPU)


def test_decoding_rows_read_the_token_sampled_last_and_prefilling_rows_their_known_ones() -> None:
    assert made_input().token_ids_T.tolist() == [102, 100, 10, 11, 12, 33, 34]


def test_positions_go_on_from_each_rows_length() -> None:
    assert made_input().positions_T.tolist() == [5, 3, 0, 1, 2, 3, 4]


def test_slots_are_a_page_times_the_page_size_plus_an_offset_a_group_each() -> None:
    first, second = made_input().groups
    expected = [4 * 4 + 1, 7 * 4 + 3, 0, 1, 2, 5 * 4 + 3, 6 * 4]
    assert first.slots_T.tolist() == expected
    assert second.slots_T.tolist() == [slot + 10 * PAGE_SIZE for slot in expected]


def test_the_last_token_of_each_row_that_samples_is_picked() -> None:
    assert made_input().last_N.tolist() == [0, 1, 6]


def test_lengths_and_tables_describe_each_part_once_its_tokens_are_written() -> None:
    batch = made_input()
    assert batch.decode_context_lens_B.tolist() == [6, 4]
    assert batch.max_context_len == 6
    assert batch.groups[0].decode_table_BP[0].tolist() == [9, 4]
    assert batch.groups[0].decode_table_BP[1, 0] == 7
    assert batch.query_starts.tolist() == [0, 3, 5]
    assert batch.prefill_context_lens_S.tolist() == [3, 5]
    assert batch.prefill_lengths == ((3, 3), (2, 5))
    assert batch.groups[1].prefill_table_SP[1].tolist() == [15, 16]


def test_rows_that_compute_one_token_and_do_not_sample_are_no_decode_rows() -> None:
    plan = StepPlan(step=1, rows=(0, 1, 2), num_tokens=(1, 1, 1), samples=(True, False, True))
    assert num_decode_rows(plan) == 1
    assert num_decode_rows(replace(plan, samples=(True,) * 3)) == 3
    assert num_decode_rows(replace(plan, num_tokens=(2, 1, 1))) == 0


def test_a_step_that_only_decodes_and_one_that_only_prefills_have_the_other_part_empty() -> None:
    plan, tables, last_token = mixed_step()
    cut = {"rows": plan.rows[:2], "num_tokens": plan.num_tokens[:2], "samples": plan.samples[:2]}
    decode = model_input(replace(plan, **cut), tables, last_token, page_size=PAGE_SIZE, device=CPU)
    assert (decode.num_decode, decode.prefill_lengths, decode.query_starts.tolist()) == (2, (), [0])
    cut = {"rows": plan.rows[2:], "num_tokens": plan.num_tokens[2:], "samples": plan.samples[2:]}
    prefill = model_input(replace(plan, **cut), tables, last_token, page_size=PAGE_SIZE, device=CPU)
    assert (prefill.num_decode, prefill.max_context_len, prefill.last_N.tolist()) == (0, 0, [4])


# Steps


def make_rank(oracle: Oracle) -> Rank:
    config = EngineConfig(max_num_rows=8, max_num_tokens=24, page_size=PAGE_SIZE, max_model_len=80)
    return Shard(oracle.folder, config, SoloCollectives(), CPU).ready((24,))


def make_scheduler() -> Scheduler:
    return Scheduler(
        num_pages=(24,),
        windows=(None,),
        page_size=PAGE_SIZE,
        max_num_rows=8,
        max_num_tokens=24,
        max_model_len=80,
    )


def test_a_plan_whose_digest_does_not_fit_is_refused_before_anything_is_computed(
    gqa: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = make_rank(gqa)
    work = {"rows": (0,), "num_tokens": (2,), "samples": (True,)}
    plan = StepPlan(step=1, admissions=(admission(0, 5, 6),), grants=(grant(0, 3),), **work)
    rank.launch(replace(plan, digest=Ledger().apply(plan))).result()

    def forward(*args: object) -> Tensor:
        raise AssertionError("computed")

    monkeypatch.setattr(Decoder, "forward", forward)
    next_plan = StepPlan(step=2, rows=(0,), num_tokens=(1,), samples=(True,), digest=12345)
    with pytest.raises(StepMismatch, match=r"rank 0 disagrees at step 2: digest 0x\w+, plan says 0x3039"):
        rank.launch(next_plan)


@pytest.mark.parametrize("order", [[1], [0, 2], [0, 1, 1]], ids=["first lost", "lost", "repeated"])
def test_a_plan_that_comes_too_early_or_twice_is_noticed_at_once(gqa: Oracle, order: list[int]) -> None:
    scheduler, rank = make_scheduler(), make_rank(gqa)
    scheduler.add(make_request("a", (5, 6, 7)))
    plans = [plan for _ in range(4) if (plan := scheduler.plan()) is not None]
    *before, last = order
    for index in before:
        rank.launch(plans[index])
    with pytest.raises(StepMismatch):
        rank.launch(plans[last])


def run_ahead(oracle: Oracle, requests: list[EngineRequest], depth: int) -> dict[str, list[int]]:
    """Every request's tokens, where `depth` steps are launched before the first is collected."""
    scheduler, ranks = make_scheduler(), SoloRanks(make_rank(oracle))
    found: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        scheduler.add(request)
    launched: deque[StepPlan] = deque()
    while scheduler.num_unfinished:
        while len(launched) < depth and (plan := scheduler.plan()) is not None:
            ranks.launch(plan)
            launched.append(plan)
        launched.popleft()
        for event in scheduler.commit(ranks.collect()):
            assert event.token_id is not None
            found[event.request_id].append(event.token_id)
        scheduler.check()
    ranks.close()
    return found


@pytest.mark.parametrize("depth", [2, 3])
def test_a_step_launched_before_the_last_is_collected_gives_the_same_tokens(gqa: Oracle, depth: int) -> None:
    sampling = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2, "max_tokens": 20}
    prompts = random_prompts([1, 3, 7, 12, 20, 33])
    requests = [
        make_request(str(seed), prompt, seed=seed, stop_token_ids=tuple(range(30)), **sampling)
        for seed, prompt in enumerate(prompts)
    ]
    in_turn = run_ahead(gqa, requests, 1)
    assert any(len(found) < 20 for found in in_turn.values()), "a stop id is learnt a step late"
    assert run_ahead(gqa, requests, depth) == in_turn
