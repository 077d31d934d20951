"""Head counts that do not divide by the ranks: every split runs, and gives the tokens of one rank."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from checkpoints import random_prompts, save_llama
from driving import make_request, run, tokens
from headway.core.config import EngineConfig
from headway.engine.build import solo_engine, thread_engine
from headway.engine.engine import Engine
from headway.sharding.heads import HeadPlan

SHAPES = {
    (71, 1): (2, 3, 4, 7),
    (14, 2): (3, 4, 5),
    (40, 10): (3, 4, 8),
    (28, 4): (3, 5, 8),
    (32, 8): (3, 5, 6, 7),
    (32, 32): (5, 7),
    (9, 3): (2, 4),
}
CASES = [(*heads, world_size) for heads, sizes in SHAPES.items() for world_size in sizes]
LENGTHS = [3, 17, 30]
NUM_TOKENS = 12
SETTINGS: dict[str, Any] = {"device": "cpu", "num_pages": 32, "max_num_rows": 4, "max_num_tokens": 24}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    @cache
    def make(num_q_heads: int, num_kv_heads: int) -> Path:
        folder = tmp_path_factory.mktemp(f"heads-{num_q_heads}-{num_kv_heads}")
        save_llama(
            folder,
            hidden_size=2 * num_q_heads,  # transformers wants a multiple
            num_attention_heads=num_q_heads,
            num_key_value_heads=num_kv_heads,
        )
        return folder

    return make


def generate(engine: Engine) -> list[tuple[int, ...]]:
    requests = [
        make_request(str(index), prompt, max_tokens=NUM_TOKENS)
        for index, prompt in enumerate(random_prompts(LENGTHS))
    ]
    try:
        return [tokens(events) for events in run(engine, requests).values()]
    finally:
        engine.close()


@pytest.mark.parametrize(("num_q_heads", "num_kv_heads", "world_size"), CASES)
def test_every_split_gives_the_tokens_of_one_rank(
    folder_of: Callable[[int, int], Path], num_q_heads: int, num_kv_heads: int, world_size: int
) -> None:
    folder = folder_of(num_q_heads, num_kv_heads)
    alone = generate(solo_engine(folder, EngineConfig(**SETTINGS)))
    assert generate(thread_engine(folder, EngineConfig(tp=world_size, **SETTINGS))) == alone


@pytest.mark.parametrize(("num_q_heads", "num_kv_heads", "world_size"), CASES)
def test_no_rank_holds_a_kv_head_that_its_queries_do_not_need(
    num_q_heads: int, num_kv_heads: int, world_size: int
) -> None:
    group = num_q_heads // num_kv_heads
    for rank in HeadPlan(num_q_heads, num_kv_heads, world_size).ranks:
        assert set(rank.kv) == {head // group for head in rank.q}
