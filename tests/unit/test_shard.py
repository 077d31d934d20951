"""A rank in the making: its pool, the sum that sizes it, and settings against the model and the machine."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from checkpoints import Oracle
from headway.core.config import EngineConfig
from headway.core.errors import ConfigError, StartError
from headway.engine.build import ShardFacts, agree, shard_facts, solo_engine
from headway.model.collectives import SoloCollectives, ThreadCollectives
from headway.model.spec import DecoderSpec, LayerSpec, Rope
from headway.sharding.pages import PageGroup
from headway.worker import shard as shard_module
from headway.worker.kv_pool import KvPool, PoolBudget
from headway.worker.shard import Shard, pick_device, pick_dtype
from headway.worker.warm_up import KINDS, num_pages, warm_up_plans
from headway_kernels import reference

CPU = torch.device("cpu")
PAGE_SIZE = 4


def make_spec() -> DecoderSpec:
    return DecoderSpec(
        family="llama",
        hidden_size=8,
        num_q_heads=4,
        num_kv_heads=2,
        head_dim=6,
        mlp_size=8,
        vocab_size=10,
        max_model_len=32,
        layers=(LayerSpec(), LayerSpec(window=8), LayerSpec()),
        rope=Rope(theta=10_000.0, dim=6),
    )


def test_a_pool_takes_what_its_pages_were_said_to_take() -> None:
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        layer = 2 * 2 * PAGE_SIZE * 6 * size  # K and V, heads, slots, values, bytes
        found = make_spec().page_bytes(num_kv_heads=2, page_size=PAGE_SIZE, dtype_bytes=size)
        assert found == (2 * layer, layer), "two layers see all, one has a window"
        pool = KvPool(
            make_spec(), num_pages=(5, 3), num_kv_heads=2, page_size=PAGE_SIZE, dtype=dtype, device=CPU
        )
        assert pool.num_bytes == 5 * 2 * layer + 3 * layer
        for pools in (pool.k, pool.v):
            assert [len(pool) for pool in pools] == [5, 3, 5]
            assert {pool.shape[1:] for pool in pools} == {(2, PAGE_SIZE, 6)}


MIB = 1 << 20


def make_group(*, mib: int = 10, useful: int = 1000, window: int | None = None) -> PageGroup:
    return PageGroup(window=window, page_bytes=mib * MIB, useful=useful, least=min(useful, 4))


def make_budget(*groups: PageGroup, taken: int = 500 * MIB) -> PoolBudget:
    return PoolBudget(
        total=1000 * MIB, fraction=0.9, taken=taken, activations=100 * MIB, groups=groups or (make_group(),)
    )


DEFAULT = EngineConfig()


def test_a_budget_is_the_fraction_of_the_whole_less_what_is_taken_and_what_a_step_needs() -> None:
    budget = make_budget()
    assert budget.pool_bytes == 300 << 20
    assert budget.num_pages(DEFAULT) == (30,)
    assert str(budget) == ("1,000 MiB x 0.9 - 500 taken - 100 activations = 300 MiB for pages of 10,240 KiB")


def test_no_more_pages_are_made_than_could_be_filled() -> None:
    assert make_budget(make_group(useful=7)).num_pages(DEFAULT) == (7,)


@pytest.mark.parametrize(
    ("groups", "config", "end"),
    [
        ((make_group(),), DEFAULT, "10,240 KiB: 30 pages (300 MiB) fit"),
        (
            (make_group(useful=7),),
            DEFAULT,
            "10,240 KiB: 7 pages (70 MiB) are all that 64 rows can fill",
        ),
        (
            (make_group(),),
            EngineConfig(num_pages=9),
            "10,240 KiB: 9 pages (90 MiB) are what num_pages asks for",
        ),
        (
            (make_group(mib=1), make_group(mib=2, useful=20, window=8)),
            DEFAULT,
            "1,024 + 2,048 KiB: 260 + 20 pages (300 MiB) fit",
        ),
    ],
)
def test_the_sum_goes_down_to_the_pool_and_says_what_ends_it_there(
    groups: tuple[PageGroup, ...], config: EngineConfig, end: str
) -> None:
    assert make_budget(*groups).describe(config).endswith(f"= 300 MiB for pages of {end}")


@pytest.mark.parametrize("taken", [791 << 20, 2000 << 20])
def test_memory_for_not_even_one_page_is_an_error_that_shows_the_sum(taken: int) -> None:
    with pytest.raises(StartError, match=r"no memory for KV pages: 1,000 MiB x 0\.9 - .* taken - 100 act"):
        make_budget(taken=taken).num_pages(DEFAULT)


def make_shard(oracle: Oracle, **settings: Any) -> Shard:
    return Shard(oracle.folder, EngineConfig(device="cpu", **settings), SoloCollectives(), CPU)


def test_on_a_host_the_budget_is_what_is_available_and_pages_are_all_that_the_rows_can_use(
    gqa: Oracle,
) -> None:
    shard = make_shard(gqa, max_num_rows=3, max_model_len=60, page_size=16)
    assert shard.budget().num_pages(shard.config) == (3 * 4,)


def test_a_hosts_memory_is_shared_by_all_its_ranks_of_whatever_replica(
    gqa: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "free_bytes", lambda: 1000 * MIB)
    shard = make_shard(gqa)
    assert [shard.budget(ranks_on_host=ranks).total for ranks in (1, 4)] == [1000 * MIB, 250 * MIB]


def test_the_operations_say_what_decoding_takes_beside_the_pool(
    gqa: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = make_shard(gqa, max_num_rows=3, max_model_len=60)
    gathered = shard.budget().activations
    monkeypatch.setattr(reference, "decode_bytes", lambda **shape: 0)
    assert gathered - shard.budget().activations == 3 * 60 * 2 * (2 * 16 * 4 + 16)


def test_more_pages_than_the_host_can_hold_are_an_error_that_says_how_much_they_take(gqa: Oracle) -> None:
    num_pages = 1 << 31
    with pytest.raises(StartError, match=rf"no memory for {num_pages:,} KV pages \(\d+\.\d GiB\)"):
        make_shard(gqa).ready((num_pages,))


def test_more_pages_than_the_budget_has_are_refused_before_any_is_made(gqa: Oracle) -> None:
    # A host promises memory that it does not have: the pool would be made, and its rank killed later.
    num_pages = 1 << 24
    text = rf"no memory for {num_pages:,} KV pages \(num_pages={num_pages}\): .* for pages of 12 KiB"
    with pytest.raises(StartError, match=text):
        shard_facts(make_shard(gqa, num_pages=num_pages))


# Settings against the model


def test_a_longer_context_than_the_models_is_refused(gqa: Oracle) -> None:
    with pytest.raises(ConfigError, match=r"max_model_len must be at most 256 .*, got 257"):
        make_shard(gqa, max_model_len=257)


def test_auto_takes_float32_on_a_cpu_and_the_checkpoints_dtype_on_a_gpu() -> None:
    assert pick_dtype("auto", "bfloat16", CPU) is torch.float32
    assert pick_dtype("auto", "bfloat16", torch.device("cuda", 0)) is torch.bfloat16
    assert pick_dtype("float16", "bfloat16", CPU) is torch.float16


def test_a_gpu_that_is_not_there_is_an_error_that_says_how_many_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(StartError, match="GPU 2 is needed, this host has 2"):
        pick_device("cuda", 2)


def test_the_warm_up_runs_prompts_of_every_size_then_decodes_with_rows_of_every_number(gqa: Oracle) -> None:
    shard = make_shard(gqa, max_num_tokens=64, max_num_rows=21, max_model_len=30, page_size=PAGE_SIZE)
    plans = shard.warm_up_plans()
    assert plans[0].num_tokens == (30, 30)
    assert [plan.num_tokens for plan in plans[5:8]] == [(16,), (2, 30), (4, 30, 30)]
    rank = shard.ready((num_pages(plans),))
    found = [len(rank.launch(plan).result().tokens) for plan in plans]
    kinds = len(KINDS)
    assert found == [2, *[1] * 5, 2, 3, *[1] * kinds, 2, 3, 4, 8, 16, *[21] * kinds]


@pytest.mark.parametrize(
    ("rows", "tokens", "length", "page_size"), [(1, 1, 1, 1), (64, 3, 9, 16), (300, 4096, 5, 1)]
)
def test_the_warm_up_keeps_to_every_limit(rows: int, tokens: int, length: int, page_size: int) -> None:
    config = EngineConfig(max_num_rows=rows, max_num_tokens=tokens, page_size=page_size)
    plans = warm_up_plans(config, max_model_len=length, num_groups=2, sizes=(1, tokens))
    assert {1, min(rows, tokens)} <= {len(plan.rows) for plan in plans}
    for plan in plans:
        assert len(plan.rows) <= rows
        assert 0 < sum(plan.num_tokens) <= tokens
        assert max(plan.num_tokens) <= length
        pages = [page for grant in plan.grants if grant.group == 1 for page in grant.pages]
        assert len(pages) == len(set(pages)) >= sum(-(-count // page_size) for count in plan.num_tokens)


def test_ranks_agree_on_the_pages_that_all_of_them_have_room_for() -> None:
    facts = [
        ShardFacts(num_pages=counts, groups=(), weight_bytes=0, budget="") for counts in ((9, 3), (8, 4))
    ]
    assert agree(facts) == (8, 3)


def test_an_engine_tells_what_it_is(gqa: Oracle) -> None:
    engine = solo_engine(gqa.folder, EngineConfig(device="cpu", num_pages=8, page_size=PAGE_SIZE))
    info = engine.info
    assert (info.world_size, info.device, info.dtype, info.vocab_size) == (1, "cpu", "float32", 301)
    assert (info.num_pages, info.page_size, info.max_model_len) == (8, 4, 32), "the pool bounds the length"
    assert info.pool_bytes == 8 * 2 * 3 * 2 * 4 * 16 * 4
    engine.close()


def test_ranks_whose_experts_have_other_kernels_run_the_same_steps(
    gqa: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that one rank alone runs would leave it waiting for the others."""
    config = EngineConfig(tp=2, device="cpu", max_num_tokens=64)
    shards = [Shard(gqa.folder, config, group, CPU) for group in ThreadCollectives.group(2)]
    for shard, sizes in zip(shards, ((1, 5, 17), (1, 6, 64)), strict=True):
        monkeypatch.setattr(shard._decoder, "step_sizes", lambda most, sizes=sizes: sizes)
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda shard: shard._step_sizes(), shards))
    assert found == [(1, 5, 6, 17, 64)] * 2
