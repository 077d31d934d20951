"""The worker's sampler: rows come and go, and each gets what its own parameters ask for."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headway.core.limits import BOUNDS
from headway.core.sampling import SamplingParams
from headway.core.step import Admission, SampledToken
from headway.worker.sampler import Sampled, Sampler

NUM_TOKENS = 53
NUM_ROWS = 8


def make_sampler(num_tokens: int = NUM_TOKENS) -> Sampler:
    return Sampler(vocab_size=num_tokens, max_num_rows=NUM_ROWS, device=torch.device("cpu"))


def admission(row: int, *, prompt: tuple[int, ...] = (1, 2, 3), seed: int = 0, **params: Any) -> Admission:
    output, banned = params.pop("output", ()), params.pop("banned", ())
    return Admission(
        row=row,
        token_ids=prompt + output,
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(**params),
        seed=seed,
        banned_until_min=banned,
    )


def make_logits(seed: int, num_rows: int = 1) -> Tensor:
    return torch.randn(num_rows, NUM_TOKENS, generator=torch.Generator().manual_seed(seed)) * 2


def token_ids(sampled: Sampled) -> list[int]:
    return [token.token_id for token in sampled.to_host()]


def generate(sampler: Sampler, order: list[int], start: int, steps: int) -> dict[int, list[SampledToken]]:
    """Decode `order`'s rows together; row r's logits at position p are the same in any company."""
    found: dict[int, list[SampledToken]] = {row: [] for row in order}
    for position in range(start, start + steps):
        logits = torch.cat([make_logits(1000 * row + position) for row in order])
        for token in sampler.sample(logits, order, [position] * len(order)).to_host():
            found[token.row].append(token)
    return found


def at_bounds(field: str) -> st.SearchStrategy[Any]:
    bound = BOUNDS[field]
    kind = int if bound.integer else float
    return st.sampled_from([kind(bound.min), kind(bound.max)])


NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
EXTREME = ("top_k", "top_p", "min_p", *NEUTRAL)
PARAMS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 1e-300, 1e-6, 0.8, 1.0, 100.0])},
    optional={name: at_bounds(name) for name in EXTREME}
    | {
        "top_k": st.sampled_from([1, 3, 1 << 20]),
        "logprobs": st.integers(0, 20),
        "min_tokens": st.integers(0, 9),
    },
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    params=st.lists(PARAMS, min_size=1, max_size=NUM_ROWS),
    seed=st.integers(0, (1 << 64) - 1),
    data=st.data(),
)
def test_a_row_gets_the_same_tokens_and_logprobs_in_any_company(
    params: list[dict[str, Any]], seed: int, data: st.DataObject
) -> None:
    banned = tuple(range(0, NUM_TOKENS, 2))
    rows = [
        admission(row, seed=seed + row, banned=banned, **fields, max_tokens=20)
        for row, fields in enumerate(params)
    ]
    order = data.draw(st.permutations(range(len(rows))))
    together = make_sampler()
    for row in rows:
        together.admit(row)
    found = generate(together, list(order), start=3, steps=4)
    for row in rows:
        alone = make_sampler()
        alone.admit(row)
        assert found[row.row] == generate(alone, [row.row], start=3, steps=4)[row.row]


def test_greedy_rows_and_rows_with_top_k_1_take_the_argmax() -> None:
    sampler, logits = make_sampler(), make_logits(5, num_rows=3).bfloat16()
    logits[1, [7, 9]] = 50.0
    sampler.admit(admission(0, temperature=0.0, top_p=0.5, min_p=0.5))
    sampler.admit(admission(1, temperature=5.0, top_k=1))
    sampler.admit(admission(2, temperature=2.0))
    assert token_ids(sampler.sample(logits, [0, 1, 2], [3, 3, 3]))[:2] == [int(logits[0].argmax()), 7]
    assert token_ids(sampler.sample(logits[:2], [0, 1], [3, 3])) == [int(logits[0].argmax()), 7]


def test_a_replayed_row_continues_with_the_tokens_of_the_undisturbed_one() -> None:
    params = {"temperature": 1.3, "top_p": 0.9, "frequency_penalty": 1.5, "repetition_penalty": 1.7}
    first, second = make_sampler(), make_sampler()
    first.admit(admission(2, seed=9, **params))
    tokens = tuple(token.token_id for token in generate(first, [2], start=3, steps=10)[2])
    second.admit(admission(2, seed=9, output=tokens[:6], **params))
    assert [token.token_id for token in generate(second, [2], start=9, steps=4)[2]] == list(tokens[6:])


def test_penalties_follow_the_tokens_as_they_are_sampled() -> None:
    sampler, logits = make_sampler(), torch.zeros(1, NUM_TOKENS)
    logits[0, :5] = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0])
    sampler.admit(admission(0, temperature=0.0, prompt=(0,), repetition_penalty=3.0, presence_penalty=1.5))
    # 0 is in the prompt: 9 / 3. Then each choice falls to a third of its logit, less 1.5.
    chosen = [token_ids(sampler.sample(logits, [0], [1 + step])) for step in range(4)]
    assert chosen == [[1], [2], [3], [4]]
    sampler.end(0)
    sampler.admit(admission(0, temperature=0.0, prompt=(6,), frequency_penalty=1.0))
    chosen = [token_ids(sampler.sample(logits, [0], [1 + step])) for step in range(4)]
    assert chosen == [[0], [0], [1], [0]], "the row before left nothing behind; ties go to the lowest id"


def test_counts_take_memory_only_once_a_penalised_row_is_admitted() -> None:
    sampler = make_sampler()
    sampler.admit(admission(0))
    assert sampler._counts is None
    sampler.admit(admission(1, presence_penalty=0.1))
    assert sampler._counts is not None


def test_stop_ids_are_not_chosen_before_min_tokens() -> None:
    sampler, logits = make_sampler(), torch.zeros(2, NUM_TOKENS)
    logits[:, 4], logits[:, 5], logits[:, 6] = 9.0, 8.0, 7.0
    # The model may lack an id that a client names; 2 of the 3 wanted tokens were generated before a move.
    sampler.admit(admission(0, temperature=0.0, min_tokens=2, banned=(4, 5, 1 << 30), logprobs=1))
    sampler.admit(admission(1, temperature=0.0, min_tokens=3, banned=(4,), output=(8, 8)))
    steps = [sampler.sample(logits, [0, 1], [3 + step, 5 + step]).to_host() for step in range(3)]
    assert [[token.token_id for token in step] for step in steps] == [[6, 5], [6, 4], [4, 4]]
    law = logits[0].log_softmax(-1)
    assert [pair.token_id for pair in steps[0][0].logprobs] == [6, 4], "logprobs are those before the bans"
    assert steps[0][0].logprobs[0].logprob == pytest.approx(float(law[6]))


def test_bans_follow_the_rows_when_the_batch_changes() -> None:
    sampler, logits = make_sampler(), torch.zeros(1, NUM_TOKENS)
    logits[0, 4:6] = 9.0
    sampler.admit(admission(0, temperature=0.0, min_tokens=2, banned=(4,)))
    sampler.admit(admission(1, temperature=0.0, min_tokens=2, banned=(5,)))
    assert [token_ids(sampler.sample(logits, [row], [3])) for row in (0, 1, 0)] == [[5], [4], [5]]


def test_logprobs_are_those_of_the_penalised_softmax_chosen_first_then_by_rank() -> None:
    sampler, logits = make_sampler(), make_logits(8, num_rows=3)
    sampler.admit(admission(0, temperature=0.3, logprobs=20, top_k=2, seed=1))
    sampler.admit(admission(1, temperature=1.0))
    sampler.admit(admission(2, temperature=1.0, logprobs=0, prompt=(5,), repetition_penalty=2.0, seed=4))
    tokens = sampler.sample(logits, [0, 1, 2], [3, 3, 1]).to_host()
    law = logits[0].log_softmax(-1)
    first, likeliest = tokens[0].logprobs[0], tokens[0].logprobs[1:]
    assert (first.token_id, len(likeliest)) == (tokens[0].token_id, 20)
    assert [pair.token_id for pair in likeliest] == law.argsort(descending=True)[:20].tolist()
    assert [pair.logprob for pair in likeliest] == pytest.approx([float(law[p.token_id]) for p in likeliest])
    assert sum(math.exp(pair.logprob) for pair in likeliest) < 1
    assert tokens[1].logprobs == ()
    penalised = logits[2].clone()
    penalised[5] *= 2 if penalised[5] < 0 else 0.5
    assert [pair.token_id for pair in tokens[2].logprobs] == [tokens[2].token_id]
    expected = float(penalised.log_softmax(-1)[tokens[2].token_id])
    assert tokens[2].logprobs[0].logprob == pytest.approx(expected)


def test_tied_logprobs_are_reported_lowest_id_first() -> None:
    sampler = make_sampler()
    sampler.admit(admission(0, temperature=0.0, logprobs=3))
    logits = torch.zeros(1, NUM_TOKENS)
    logits[0, [40, 9, 30]] = 2.0
    (token,) = sampler.sample(logits, [0], [3]).to_host()
    assert [pair.token_id for pair in token.logprobs] == [9, 9, 30, 40]


def test_a_row_of_nan_leaves_its_neighbours_and_the_step_alone() -> None:
    params = {"temperature": 1.0, "logprobs": 2, "presence_penalty": 0.5, "top_p": 0.9}
    both, alone = make_sampler(), make_sampler()
    both.admit(admission(0, **params))
    for sampler in (both, alone):
        sampler.admit(admission(1, seed=6, **params))
    healthy = make_logits(2)
    logits = torch.cat([torch.full_like(healthy, math.nan), healthy])
    broken, neighbour = both.sample(logits, [0, 1], [3, 3]).to_host()
    assert (neighbour,) == alone.sample(healthy, [1], [3]).to_host()
    assert broken.token_id == 0
    assert all(pair.logprob == -math.inf for pair in broken.logprobs)


def test_the_draws_of_a_row_follow_its_distribution() -> None:
    sampler, logits = make_sampler(num_tokens=4), torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    sampler.admit(admission(0, temperature=2.0, top_k=3, seed=123))
    count = 2000
    tokens = torch.cat([sampler.sample(logits, [0], [position]).tokens_S for position in range(count)])
    law = torch.tensor([-math.inf, 0.5, 1.0, 1.5]).softmax(-1)
    expected = law * count
    counts = torch.bincount(tokens, minlength=4)
    assert counts[0] == 0
    assert float(((counts - expected)[1:] ** 2 / expected[1:]).sum()) < 13.8, "chi-square, p = 0.001"


def test_a_step_that_samples_nothing_gives_nothing() -> None:
    assert make_sampler().sample(torch.empty(0, NUM_TOKENS), [], []).to_host() == ()


def test_logits_are_left_as_they_are() -> None:
    sampler, logits = make_sampler(), make_logits(3)
    before = logits.clone()
    sampler.admit(admission(0, min_tokens=5, banned=(1,), presence_penalty=1.0, top_k=3, logprobs=1))
    sampler.sample(logits, [0], [3])
    assert torch.equal(logits, before)
