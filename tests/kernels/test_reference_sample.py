"""The op `sample`: whom the noise depends on, what it draws, and what the cuts and penalties leave."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as oracle

from headway_kernels.reference_noise import gumbel_noise, noise_key, splitmix64
from headway_kernels.reference_sample import TopCut, choose, cut_, floors, penalise, sample, sample_shard

NUM_TOKENS = 61  # no multiple of a vector's width
CHI_SQUARE_LIMIT = {7: 24.3, 63: 103.4}  # by degrees of freedom, at p = 0.001


def make_logits(seed: int, num_rows: int = 1, num_tokens: int = NUM_TOKENS) -> Tensor:
    return torch.randn(num_rows, num_tokens, generator=torch.Generator().manual_seed(seed)) * 3


def column(values: list[float]) -> Tensor:
    return torch.tensor(values)[:, None]


def top_cut(
    places: list[int], temperature: list[float], top_k: list[int], top_p: list[float], num_tokens: int
) -> TopCut:
    top_k = [min(k or num_tokens, num_tokens) for k in top_k]
    return TopCut(
        places_C=torch.tensor(places),
        temperature_C1=column(temperature),
        top_k_C1=torch.tensor(top_k)[:, None],
        top_p_C1=column(top_p),
        num_candidates=max(top_k),
    )


def draw(logits: Tensor, rows: list[dict[str, Any]]) -> list[int]:
    """Sample with one dict of parameters a row, the way a caller would put them together."""

    def get(name: str, default: float) -> list[Any]:
        return [row.get(name, default) for row in rows]

    cuts = [i for i, row in enumerate(rows) if row.get("top_k") or row.get("top_p", 1.0) < 1]
    chosen = [
        [get(name, default)[i] for i in cuts]
        for name, default in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0))
    ]
    return sample(
        logits,
        temperature_S1=column(get("temperature", 1.0)),
        seeds_S=torch.tensor(get("seed", 0)),
        positions_S=torch.tensor(get("position", 0)),
        top=top_cut(cuts, *chosen, logits.shape[-1]) if cuts else None,
        min_p_S1=column(get("min_p", 0.0)) if any(get("min_p", 0.0)) else None,
    ).tolist()


# Noise


def python_splitmix64(state: int) -> int:
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_splitmix64_gives_the_published_sequence_of_seed_1234567() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + i * 0x9E3779B97F4A7C15) & ((1 << 64) - 1) for i in range(4)]
    signed = torch.tensor([s - (1 << 64) if s >> 63 else s for s in states])
    assert [value & ((1 << 64) - 1) for value in splitmix64(signed).tolist()] == published


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (1, 0), (0, 1), ((1 << 63) - 1, 1 << 20), (-5, 77)])
def test_noise_is_the_documented_function_of_seed_position_and_token(seed: int, position: int) -> None:
    golden = 0x9E3779B97F4A7C15
    key = python_splitmix64(python_splitmix64(seed) + position * golden)
    uniform = [(python_splitmix64(key + i * golden) >> 40 | 1) / (1 << 24) for i in range(NUM_TOKENS)]
    expected = torch.tensor([-math.log(-math.log(u)) for u in uniform])
    noise = gumbel_noise(torch.tensor([seed]), torch.tensor([position]), NUM_TOKENS)[0]
    torch.testing.assert_close(noise, expected, rtol=1e-4, atol=1e-6)
    assert noise_key(torch.tensor([seed]), torch.tensor([position])).item() % (1 << 64) == key


def test_a_shard_of_the_vocabulary_draws_its_own_part_of_the_noise() -> None:
    seeds, positions = torch.tensor([3, 4]), torch.tensor([10, 20])
    whole = gumbel_noise(seeds, positions, NUM_TOKENS)
    parts = [gumbel_noise(seeds, positions, 20), gumbel_noise(seeds, positions, 41, first_token=20)]
    assert torch.equal(torch.cat(parts, dim=-1), whole)


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities.double() * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def draws(seeds: Tensor, positions: Tensor, logits: Tensor) -> Tensor:
    ones = torch.ones(len(seeds), 1)
    return sample(
        logits.expand(len(seeds), -1), temperature_S1=ones * 1.5, seeds_S=seeds, positions_S=positions
    )


@pytest.mark.parametrize("axis", ["positions", "seeds", "both"])
def test_draws_over_positions_and_over_seeds_follow_the_softmax(axis: str) -> None:
    logits, count = make_logits(1, num_tokens=8)[0] / 2, torch.arange(20_000)
    fixed = torch.full_like(count, 5)
    tokens = draws(fixed if axis == "positions" else count, fixed if axis == "seeds" else count, logits)
    counts = torch.bincount(tokens, minlength=8)
    assert chi_square(counts, (logits / 1.5).softmax(-1)) < CHI_SQUARE_LIMIT[7]
    assert chi_square(counts, logits.softmax(-1)) > CHI_SQUARE_LIMIT[7], "the check must see a wrong law"


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, -1)])
def test_neighbouring_positions_and_seeds_draw_independently(step: tuple[int, int]) -> None:
    logits = make_logits(2, num_tokens=8)[0] / 3
    seeds = torch.arange(200).repeat_interleave(200)
    positions = torch.arange(200).repeat(200) + 1
    first, second = draws(seeds, positions, logits), draws(seeds + step[0], positions + step[1], logits)
    law = (logits / 1.5).softmax(-1)
    pairs = torch.bincount(first * 8 + second, minlength=64)
    assert chi_square(pairs, torch.outer(law, law).flatten()) < CHI_SQUARE_LIMIT[63]


# Whom a token depends on

ROW = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-30, 1e-6, 0.7, 1.0, 100.0]),
        "top_k": st.sampled_from([0, 0, 1, 2, 7, NUM_TOKENS, 1 << 20]),
        "top_p": st.sampled_from([1.0, 1.0, 0.999, 0.5, 1e-6]),
        "min_p": st.sampled_from([0.0, 0.0, 0.1, 1.0]),
        "seed": st.integers(0, (1 << 63) - 1),
        "position": st.integers(0, 1 << 20),
    }
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(rows=st.lists(ROW, min_size=1, max_size=9), data=st.data())
def test_a_row_draws_the_same_token_alone_and_anywhere_in_any_batch(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    logits = make_logits(len(rows), num_rows=len(rows)).bfloat16()  # bfloat16 has many ties
    order = data.draw(st.permutations(range(len(rows))))
    together = draw(logits, rows)
    alone = [draw(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    permuted = draw(logits[order], [rows[i] for i in order])
    assert together == alone
    assert [permuted[order.index(i)] for i in range(len(rows))] == alone


BROKEN = {
    "nan": torch.full((NUM_TOKENS,), math.nan),
    "one nan": torch.arange(NUM_TOKENS).float().index_fill(0, torch.tensor(60), math.nan),
    "inf": torch.full((NUM_TOKENS,), math.inf),
    "-inf": torch.full((NUM_TOKENS,), -math.inf),
    "huge": torch.full((NUM_TOKENS,), 3.4e38).index_fill(0, torch.tensor([1, 2]), -3.4e38),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("row", [{}, {"temperature": 0.0}, {"top_p": 0.3}, {"top_k": 3, "min_p": 0.5}])
def test_a_row_of_broken_logits_gets_some_token_and_its_neighbours_theirs(
    kind: str, row: dict[str, Any]
) -> None:
    healthy, params = make_logits(3), {"top_p": 0.9, "seed": 11, "position": 4}
    token, neighbour = draw(torch.cat([BROKEN[kind][None], healthy]), [row, params])
    assert [neighbour] == draw(healthy, [params])
    assert 0 <= token < NUM_TOKENS
    if kind in ("nan", "-inf"):
        assert token == 0
    if kind == "one nan":
        assert token < 60


def test_logits_are_read_as_float32_and_left_as_they_are() -> None:
    logits = make_logits(4, num_rows=2).bfloat16()
    rows = [{"top_k": 5, "min_p": 0.2, "seed": 8}, {"temperature": 0.0}]
    for given_logits in (logits, logits.float(), logits.double()):
        before = given_logits.clone()
        assert draw(given_logits, rows) == draw(logits.float(), rows)
        assert torch.equal(given_logits, before)


def test_the_lowest_id_wins_a_tie_on_greedy_rows_alone_and_beside_random_ones() -> None:
    logits = torch.zeros(2, NUM_TOKENS)
    logits[:, [17, 18, 59]] = 4.0
    assert sample(logits).tolist() == [17, 17]
    assert draw(logits, [{"temperature": 0.0}, {"temperature": 1.0}])[0] == 17


# Cuts and penalties


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.05, 20),
    top_k=st.integers(0, NUM_TOKENS + 5),
    top_p=st.floats(1e-6, 1),
    min_p=st.floats(0, 1),
)
def test_cuts_leave_the_tokens_that_transformers_leaves(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    scores = make_logits(seed)
    expected = oracle.TemperatureLogitsWarper(temperature)(None, scores.double())
    if top_k:
        expected = oracle.TopKLogitsWarper(top_k)(None, expected)
    expected = oracle.TopPLogitsWarper(top_p)(None, expected)
    expected = oracle.MinPLogitsWarper(min_p)(None, expected)
    cut_(
        scores,
        column([temperature]),
        top_cut([0], [temperature], [top_k], [top_p], NUM_TOKENS),
        column([min_p]),
    )
    assert torch.equal(scores > -math.inf, expected > -math.inf)


def test_tokens_tied_with_the_last_one_kept_are_kept() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    cut_(scores, column([1.0]), top_cut([0], [1.0], [2], [1.0], 6), None)
    assert (scores > -math.inf).tolist() == [[False, True, True, True, True, False]]


def test_top_p_1_keeps_even_tokens_whose_mass_rounds_to_nothing() -> None:
    scores = torch.tensor([[0.0, -500.0, -400.0, -600.0]])
    cut_(scores, column([1.0]), top_cut([0], [1.0], [3], [1.0], 4), None)
    assert (scores > -math.inf).tolist() == [[True, True, True, False]]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 1000),
    repetition=st.sampled_from([0.01, 0.5, 1.0, 1.3, 100.0]),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    prompt=st.lists(st.integers(0, NUM_TOKENS - 1), max_size=30),
    output=st.lists(st.integers(0, NUM_TOKENS - 1), max_size=30),
)
def test_penalties_are_what_a_plain_loop_and_transformers_give(
    seed: int, repetition: float, presence: float, frequency: float, prompt: list[int], output: list[int]
) -> None:
    logits = make_logits(seed)
    expected = logits[0].tolist()
    for token in {*prompt, *output}:
        expected[token] *= 1 / repetition if expected[token] > 0 else repetition
    if prompt or output:
        ids = torch.tensor([prompt + output])
        repeated = oracle.RepetitionPenaltyLogitsProcessor(repetition)(ids, logits.clone())[0]
        torch.testing.assert_close(torch.tensor(expected), repeated)
    for token in output:
        expected[token] -= frequency
    for token in set(output):
        expected[token] -= presence
    found = penalise(
        logits,
        repetition_P1=column([repetition]),
        presence_P1=column([presence]),
        frequency_P1=column([frequency]),
        in_prompt_PV=torch.tensor([[token in prompt for token in range(NUM_TOKENS)]]),
        num_in_output_PV=torch.tensor([[output.count(token) for token in range(NUM_TOKENS)]]),
    )
    torch.testing.assert_close(found, torch.tensor([expected]), rtol=1e-4, atol=1e-4)


# Shards


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_shards_in_any_order_choose_the_token_of_the_whole_row(temperature: float) -> None:
    logits = make_logits(9, num_rows=50).round()  # ties, between shards too
    options = {
        "temperature_S1": torch.full((50, 1), temperature),
        "seeds_S": torch.arange(50),
        "positions_S": torch.arange(50),
    }
    floor = floors(logits, temperature_S1=torch.ones(50, 1), min_p_S1=torch.full((50, 1), 0.01))
    parts = [(40, NUM_TOKENS), (0, 7), (7, 7), (7, 40)]
    best = [
        sample_shard(logits[:, low:high], first_token=low, floor_S1=floor, **options) for low, high in parts
    ]
    values, ids = (torch.stack(column) for column in zip(*best, strict=True))
    logits.masked_fill_(logits < floor, -math.inf)
    assert torch.equal(choose(values, ids), sample(logits, **options))
