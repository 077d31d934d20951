"""The sampler on a GPU: it never waits for the device, ties go to the lowest id, rows keep to themselves."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from headway.core.sampling import SamplingParams
from headway.core.step import Admission
from headway.worker.sampler import Sampler

pytestmark = pytest.mark.gpu
NUM_TOKENS = 128_256

PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_k": 50, "top_p": 0.9},
    {"temperature": 1.2, "top_p": 0.95, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 1.0, "min_p": 0.05, "logprobs": 5},
    {"temperature": 0.0, "presence_penalty": 1.0, "min_tokens": 3, "logprobs": 0},
]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Any synchronisation with the device raises."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_gpu(num_tokens: int, num_rows: int) -> Sampler:
    from headway_kernels import gpu

    return Sampler(vocab_size=num_tokens, max_num_rows=num_rows, device=torch.device("cuda"), ops=gpu)


def make_sampler(*numbers: int) -> Sampler:
    sampler = on_gpu(NUM_TOKENS, len(PARAMS))
    for number in numbers:
        sampler.admit(
            Admission(
                row=number,
                token_ids=(5, 6, 7),
                num_prompt_tokens=2,
                sampling=SamplingParams(**PARAMS[number]),
                seed=number,
                banned_until_min=(0, 1, 2),
            )
        )
    return sampler


def logits_of(row: int, step: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(100 * row + step)
    return (torch.randn(1, NUM_TOKENS, device="cuda", generator=generator) * 3).bfloat16()


def test_a_row_gets_the_same_tokens_alone_and_in_a_batch() -> None:
    order = [3, 0, 5, 2, 4, 1]
    together = make_sampler(*order)
    alone = {row: make_sampler(row) for row in order}
    for step in range(8):
        batch = torch.cat([logits_of(row, step) for row in order])
        for token in together.sample(batch, order, [3 + step] * 6).to_host():
            own = logits_of(token.row, step)
            (expected,) = alone[token.row].sample(own, [token.row], [3 + step]).to_host()
            assert token.token_id == expected.token_id
            assert token.logprobs == expected.logprobs


def test_steps_are_launched_without_waiting_for_the_device(no_waiting: None) -> None:
    sampler = make_sampler(*range(6))
    logits = torch.zeros(6, NUM_TOKENS, device="cuda", dtype=torch.bfloat16)
    for step in range(5):
        sampler.sample(logits, range(6), [3 + step] * 6)
    sampler.end(4)
    sampler.sample(logits[:2], [0, 5], [8, 8])


@pytest.mark.parametrize("num_tokens", [33, 2_000, 128_256, 300_001])
def test_the_lowest_id_wins_a_tie(num_tokens: int) -> None:
    sampler = on_gpu(num_tokens, 64)
    for row in range(64):
        sampling = SamplingParams(temperature=0.0 if row < 32 else 1.0, top_k=row // 32)
        sampler.admit(Admission(row=row, token_ids=(1,), num_prompt_tokens=1, sampling=sampling, seed=row))
    first = torch.randint(num_tokens, (64, 1), device="cuda")
    logits = (torch.arange(num_tokens, device="cuda") >= first).bfloat16()
    for rows in (range(64), range(32)):
        tokens = sampler.sample(logits[: len(rows)], rows, [1] * len(rows)).tokens_S
        assert tokens.tolist() == first[: len(rows), 0].tolist()
