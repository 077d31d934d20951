"""What does not fit the machine, the model or its pool is refused, with the limit; the largest fits."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from command import CANNOT_START, WRONG, check_refused
from headway import LLM, SamplingParams
from headway.core.errors import InvalidRequest


def test_too_few_gpus_are_counted_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ("serve", "demo", "--device=cuda", "--tp=2", "--replicas=3")
    message = "3 replicas of tp=2 on device=cuda needs 6 GPUs, this host has 0"
    check_refused(tmp_path, CANNOT_START, message, *words)


def test_a_prompt_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    message = "prompt must be 1 to 1023 tokens (the context and the page pool), got 3000"
    check_refused(tmp_path, WRONG, message, "generate", "\n," * 1500, "--model", "demo")


@pytest.fixture(scope="module")
def small() -> Iterator[LLM]:
    """The bundled model with a pool of 64 tokens, far less than its context."""
    with LLM("demo", device="cpu", num_pages=4, page_size=16) as llm:
        yield llm


def test_a_prompt_larger_than_the_pool_is_refused_and_the_largest_that_fits_finishes(small: LLM) -> None:
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    with pytest.raises(InvalidRequest, match=r"^prompts\[0\] must be 1 to 63 tokens .*page pool\), got 64$"):
        small.generate([[1] * 64], params)
    (completion,) = small.generate([[1] * 63], params)
    assert (len(completion.token_ids), completion.finish_reason) == (1, "length")


@pytest.mark.parametrize("token", [-1, 2000, 1 << 40])
def test_a_token_id_outside_the_vocabulary_is_refused(small: LLM, token: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"^prompts\[0\]\[2\] must be .* 0 to 1999 .*, got {token}$"):
        small.generate([[1, 2, token]])
    with pytest.raises(InvalidRequest, match=r"^stop_token_ids\[0\] must be"):
        small.generate([[1]], SamplingParams(stop_token_ids=(2000,)))


def test_one_bad_prompt_keeps_all_of_its_batch_from_starting(small: LLM) -> None:
    with pytest.raises(InvalidRequest):
        small.generate([[1, 2], []])
    assert len(small.generate([[1, 2], [3]], SamplingParams(max_tokens=2, ignore_eos=True))) == 2
