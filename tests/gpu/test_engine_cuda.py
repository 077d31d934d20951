"""The same engine on GPUs: token for token what transformers gives there, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch

from headway.core.config import EngineConfig
from headway.core.request import EngineRequest
from headway.core.sampling import SamplingParams
from headway.engine.build import solo_engine
from headway.llm import LLM
from headway.model.folder import resolve

pytestmark = pytest.mark.gpu
NUM_TOKENS = 48
LENGTHS = (1, 2, 3, 5, 8, 15, 16, 17, 30, 31, 32, 33, 63, 64, 65, 100)
SETTINGS: dict[str, Any] = {"page_size": 16, "max_num_tokens": 96, "max_num_rows": 16}


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(1, 2000, (n,), generator=generator).tolist()) for n in LENGTHS]


@pytest.fixture(scope="module")
def expected(prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """transformers' greedy tokens for the demo model in float32 on the GPU."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(resolve("demo"), dtype=torch.float32)
    model = model.eval().cuda()
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device="cuda")
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


def generate(folder: Path, prompts: list[tuple[int, ...]], **settings: Any) -> list[list[int]]:
    engine = solo_engine(folder, EngineConfig(device="cuda", **SETTINGS, **settings))
    for index, prompt in enumerate(prompts):
        engine.submit(
            EngineRequest(
                request_id=str(index),
                prompt_ids=prompt,
                sampling=SamplingParams(temperature=0, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS),
                stop_token_ids=(0,),  # as transformers' min_new_tokens: the end is not chosen before its time
                seed=0,
            )
        )
    tokens: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for event in engine.step():
            assert event.error is None, event.error
            if event.token_id is not None:
                tokens[int(event.request_id)].append(event.token_id)
        engine.check()
    assert engine.load.free_pages == engine.load.num_pages
    engine.close()
    return tokens


def test_one_gpu_gives_the_tokens_of_transformers(
    prompts: list[tuple[int, ...]], expected: list[list[int]]
) -> None:
    assert generate(resolve("demo"), prompts, dtype="float32") == expected


def test_a_small_pool_preempts_and_gives_the_same(
    prompts: list[tuple[int, ...]], expected: list[list[int]]
) -> None:
    assert generate(resolve("demo"), prompts, dtype="float32", num_pages=24) == expected


def test_bfloat16_runs_to_the_end(prompts: list[tuple[int, ...]], expected: list[list[int]]) -> None:
    tokens = generate(resolve("demo"), prompts, dtype="bfloat16")
    same = sum(ours[0] == theirs[0] for ours, theirs in zip(tokens, expected, strict=True))
    assert all(len(row) == NUM_TOKENS for row in tokens)
    assert same >= 0.8 * len(prompts)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_through_ray_actors_give_the_tokens_of_transformers(
    prompts: list[tuple[int, ...]], expected: list[list[int]]
) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS)
    with LLM("demo", tp=2, device="cuda", dtype="float32", **SETTINGS) as llm:
        assert llm.info.world_size == 2
        assert llm.info.device != "cpu"
        assert [list(done.token_ids) for done in llm.generate(prompts, sampling)] == expected
