"""`sample` in Triton's interpreter: the reference's tokens, whole or from shards, and its cuts."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from headway_kernels import reference, sample_search
from headway_kernels.log_softmax import log_softmax
from headway_kernels.penalise import penalise_
from headway_kernels.sample import choose, sample, sample_shard
from headway_kernels.sample_floors import floors
from sample_checks import check_floors, check_tokens, column, top_cut

# Overflow is meant where logits are huge or a temperature is tiny; numpy, which interprets, mentions it.
pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
SIZES = [(1, 16), (7, 16), (300, 128)]  # tokens, tokens a program takes
BIG = {"chunk": 256, "block": 128}


def make_logits(num_rows: int, num_tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of a wider tensor whose other values are NaN."""
    torch.manual_seed(num_rows * 1000 + num_tokens)
    wide = torch.full((num_rows, num_tokens + 3), math.nan)
    wide[:, :num_tokens] = torch.randn(num_rows, num_tokens) * 3
    return wide.to(dtype)[:, :num_tokens]


def noise(num_rows: int) -> dict[str, Tensor]:
    """Arguments of random rows, the first one greedy, with seeds and positions of all sizes."""
    return {
        "temperature_S1": column([0.0, 1.0, 0.3, 2.0, 1e-30][:num_rows]),
        "seeds_S": torch.tensor([5, -1, (1 << 63) - 1, 12345678901234567, 0])[:num_rows],
        "positions_S": torch.tensor([0, 1, 131_072, 1 << 20, 77])[:num_rows],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "chunk"), [*SIZES, (1000, 512)])
def test_greedy_rows_get_the_reference_s_token(num_tokens: int, chunk: int, dtype: torch.dtype) -> None:
    logits = make_logits(3, num_tokens, dtype)
    assert torch.equal(sample(logits, chunk=chunk), reference.sample(logits))


@pytest.mark.parametrize(("num_tokens", "chunk"), [*SIZES, (1000, 512)])
def test_random_rows_get_the_reference_s_token(num_tokens: int, chunk: int) -> None:
    logits, options = make_logits(5, num_tokens), noise(5)
    found = sample(logits, **options, chunk=chunk)
    check_tokens(logits, found, **options)
    assert found[0] == logits[0].argmax()


def test_the_lowest_id_wins_a_tie_in_and_between_chunks() -> None:
    logits = torch.zeros(3, 50)
    logits[0, [17, 18, 49]] = logits[1, [3, 15, 16]] = 4.0
    assert sample(logits, chunk=16).tolist() == [17, 3, 0]
    greedy = noise(3) | {"temperature_S1": torch.zeros(3, 1)}
    assert sample(logits, **greedy, chunk=16).tolist() == [17, 3, 0]


BROKEN = {
    "nan": torch.full((40,), math.nan),
    "all but one nan": torch.full((40,), math.nan).index_fill(0, torch.tensor(37), -5.0),
    "-inf": torch.full((40,), -math.inf),
    "inf": torch.full((40,), math.inf).index_fill(0, torch.tensor([0, 1]), 3.0),
    "huge": torch.full((40,), -3.4e38).index_fill(0, torch.tensor([20, 30]), 3.4e38),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_rows_of_broken_logits_get_the_reference_s_token(kind: str) -> None:
    logits = BROKEN[kind].expand(4, -1).contiguous()
    options: dict[str, Any] = noise(4)
    top = top_cut({1: (1.0, 3, 0.5), 2: (0.3, 0, 0.9), 3: (2.0, 7, 1.0)}, 40)
    min_p = column([0.0, 0.1, 0.0, 1.0])
    for cut in ({}, {"top": top, "min_p_S1": min_p}):
        expected = reference.sample(logits, **options, **cut)
        assert torch.equal(sample(logits, **options, **cut, chunk=32), expected)
    assert torch.equal(sample(logits, chunk=32), reference.sample(logits))


# Shards


@settings(derandomize=True, max_examples=8)
@given(
    cuts=st.lists(st.integers(0, 90), max_size=3),
    order=st.randoms(use_true_random=False),
    random=st.booleans(),
)
def test_shards_choose_the_token_of_the_whole_row(cuts: list[int], order: Any, random: bool) -> None:
    logits = make_logits(4, 90)
    logits[:2] = logits[:2].round()  # ties, between shards too
    logits[2] = -math.inf
    options: dict[str, Any] = noise(4) if random else {}
    cut = {"min_p_S1": column([0.2, 0.3, 0.1, 0.5])} if random else {}
    if random:
        floor = reference.floors(logits, temperature_S1=options["temperature_S1"], **cut)
        options["floor_S1"] = floor
    bounds = [0, *sorted(cuts), 90]
    parts = list(pairwise(bounds))
    order.shuffle(parts)
    whole = reference.sample(logits, **noise(4) if random else {}, **cut)
    ways = ((reference.sample_shard, reference.choose), (partial(sample_shard, chunk=32), choose))
    for shard, pick in ways:
        best = [shard(logits[:, low:high], first_token=low, **options) for low, high in parts]
        values, ids = (torch.stack(column) for column in zip(*best, strict=True))
        assert torch.equal(pick(values, ids), whole)


# Cuts


ROW = st.tuples(
    st.sampled_from([1e-30, 0.05, 0.7, 1.0, 3.0, 100.0]),
    st.sampled_from([0, 0, 1, 2, 7, 20, 60, 1000]),
    st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01, 1e-6, 0.0]),
)
SHAPES = ["normal", "few values", "flat", "peaked", "with -inf", "tiny", "zeros of both signs", "crowded"]


def shaped(kind: str, seed: int, num_rows: int, num_tokens: int) -> Tensor:
    logits = torch.randn(num_rows, num_tokens, generator=torch.Generator().manual_seed(seed)) * 3
    if kind == "few values":
        return logits.round()
    if kind == "flat":
        return logits * 0 - 1.5
    if kind == "peaked":
        return logits + 30 * (torch.arange(num_tokens) == seed % num_tokens)
    if kind == "with -inf":
        return logits.masked_fill(logits > 1, -math.inf)
    if kind == "tiny":
        return logits * 1e-6
    if kind == "zeros of both signs":
        return torch.where(logits > 2, logits, logits.sign() * 0.0)
    if kind == "crowded":
        return torch.where(logits > 6, logits, logits * 1e-4 - 4)
    return logits


@settings(derandomize=True, max_examples=40)
@given(
    kind=st.sampled_from(SHAPES),
    seed=st.integers(0, 99),
    rows=st.lists(st.one_of(st.none(), ROW), min_size=1, max_size=2),
    num_tokens=st.sampled_from([1, 5, 61]),
    min_p=st.sampled_from([None, 0.0, 0.1, 1.0]),
)
def test_cuts_leave_the_tokens_that_the_reference_leaves(
    kind: str, seed: int, rows: list[Any], num_tokens: int, min_p: float | None
) -> None:
    logits = shaped(kind, seed, len(rows), num_tokens)
    cut = {place: row for place, row in enumerate(rows) if row is not None}
    if not cut and min_p is None:
        return
    top = top_cut(cut, num_tokens) if cut else None
    temperature = column([row[0] if row else 0.0 for row in rows])
    least = None if min_p is None else column([min_p] * len(rows))
    check_floors(floors, logits, temperature, top, least, chunk=32, block=16)


def test_cuts_of_a_larger_vocabulary_whose_lists_take_several_blocks() -> None:
    logits = make_logits(4, 1000)
    logits[1] /= 10
    top = top_cut({3: (1.0, 50, 0.9), 0: (1.0, 0, 0.9), 1: (1.0, 300, 0.5), 2: (1.0, 10, 1.0)}, 1000)
    check_floors(floors, logits, torch.ones(4, 1), top, None, **BIG)


@pytest.mark.parametrize("kind", SHAPES)
def test_cuts_of_lists_that_are_packed_several_times(kind: str) -> None:
    logits = shaped(kind, 1, 3, 1000)
    top = top_cut({0: (1.0, 0, 0.9), 1: (3.0, 600, 0.999), 2: (1.0, 500, 1.0)}, 1000)
    check_floors(floors, logits, column([1.0, 3.0, 1.0]), top, None, chunk=256, block=32)


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    ("scale", "temperature"), [(3.0, 1.0), (3.0, 2.0), (3.0, 100.0), (0.01, 1.0), (30.0, 1.0)]
)
def test_one_program_alone_weighs_a_small_part_of_a_row(
    scale: float, temperature: float, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the spread of the logits: else one multiprocessor would do the work of all."""
    num_tokens, block = 16_384, 256
    logits = torch.randn(1, num_tokens, generator=torch.Generator().manual_seed(0)) * scale
    load, num_blocks = sample_search.load_block, 0

    def counting(*arguments: Any) -> Any:
        nonlocal num_blocks
        num_blocks += 1
        return load(*arguments)

    monkeypatch.setattr(sample_search, "load_block", counting)
    top = top_cut({0: (temperature, 0, top_p)}, num_tokens)
    check_floors(floors, logits, column([temperature]), top, None, chunk=1024, block=block)
    assert 8 * num_blocks * block <= num_tokens


def test_the_check_finds_a_floor_that_is_one_token_off() -> None:
    logits = make_logits(1, 200)
    for top_k, top_p in ((20, 1.0), (0, 0.9), (20, 0.9)):
        top = top_cut({0: (1.0, top_k, top_p)}, 200)

        def wrong(logits_SV: Tensor, **arguments: Any) -> Tensor:
            kept = int((logits_SV >= reference.floors(logits_SV, **arguments)).sum())
            return logits_SV.sort(descending=True).values[:, kept : kept + 1]

        with pytest.raises(AssertionError, match="row 0: floor"):
            check_floors(wrong, logits, torch.ones(1, 1), top, None)


def test_a_row_without_cuts_has_no_floor_and_a_row_with_cuts_has_it_alone_or_in_company() -> None:
    logits, rows = make_logits(3, 200), {2: (1.0, 20, 0.8), 0: (0.7, 0, 0.6)}
    together = floors(logits, temperature_S1=torch.ones(3, 1), top=top_cut(rows, 200), **BIG)
    assert together[1] == -math.inf
    for place, row in rows.items():
        own = logits[place : place + 1]
        alone = floors(own, temperature_S1=torch.ones(1, 1), top=top_cut({0: row}, 200), chunk=64, block=32)
        assert torch.equal(alone[0], together[place])


def test_a_cut_row_samples_among_what_is_left() -> None:
    logits, options = make_logits(3, 200), noise(3)
    top, min_p = top_cut({1: (1.0, 20, 0.8)}, 200), column([0.0, 0.0, 0.3])
    found = sample(logits, **options, top=top, min_p_S1=min_p, chunk=64)
    floor = reference.floors(logits, temperature_S1=options["temperature_S1"], top=top, min_p_S1=min_p)
    check_tokens(logits, found, **options, floor_S1=floor)


# Penalties and log-probabilities


@pytest.mark.parametrize("num_tokens", [1, 61, 300])
def test_penalties_equal_the_reference_s_bit_for_bit(num_tokens: int) -> None:
    logits = make_logits(4, num_tokens).contiguous()
    tables = {
        "in_prompt_RV": torch.rand(6, num_tokens) < 0.3,
        "num_in_output_RV": torch.randint(3, (6, num_tokens), dtype=torch.int32),
    }
    columns = torch.tensor([[1.3, 0.5, -0.7], [0.01, -2.0, 2.0], [1.0, 0.0, 0.0]])
    options = {
        "places_P": torch.tensor([3, 0, 1]),
        "rows_P": torch.tensor([0, 5, 2]),
        "repetition_P1": columns[:, 0:1],
        "presence_P1": columns[:, 1:2],
        "frequency_P1": columns[:, 2:3],
        **tables,
    }
    found, expected = logits.clone(), logits.clone()
    penalise_(found, **options, chunk=128)
    reference.penalise_(expected, **options)
    assert torch.equal(found, expected)
    assert torch.equal(found[2], logits[2])
    assert not torch.equal(found[3], logits[3]) or num_tokens == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "chunk"), SIZES)
def test_log_probabilities_are_as_exact_as_pytorch_s(num_tokens: int, chunk: int, dtype: torch.dtype) -> None:
    logits, places = make_logits(4, num_tokens, dtype), torch.tensor([2, 0])
    exact = logits[places].double().log_softmax(-1)
    found = log_softmax(logits, places, chunk=chunk)
    own_error = (reference.log_softmax(logits, places) - exact).abs().max()
    assert (found - exact).abs().max() <= 2 * own_error + 1e-6


def test_log_probabilities_do_not_depend_on_the_logits_dtype_nor_on_the_order_of_a_sum() -> None:
    """A GPU adds a chunk's tokens in an order that goes by the dtype; here the tokens take other places."""
    logits, places = make_logits(2, 8 * 128, torch.float16), torch.tensor([1, 0])
    found = log_softmax(logits.float(), places, chunk=128)
    assert torch.equal(log_softmax(logits, places, chunk=128), found)
    chunks = torch.randperm(8)
    order = torch.cat([chunk * 128 + torch.randperm(128) for chunk in chunks])
    assert torch.equal(log_softmax(logits[:, order], places, chunk=128), found[:, order])


def test_log_probabilities_of_broken_rows_are_the_reference_s() -> None:
    logits = torch.stack([*BROKEN.values()])
    places = torch.arange(len(BROKEN))
    found = log_softmax(logits, places, chunk=64)
    torch.testing.assert_close(found, reference.log_softmax(logits, places))


# No rows, and arguments that do not fit


def test_no_rows_get_no_tokens() -> None:
    none, places = torch.empty(0, 9), torch.empty(0, dtype=torch.int64)
    options = noise(0) | {"temperature_S1": torch.empty(0, 1)}
    assert sample(none).shape == sample(none, **options).shape == (0,)
    assert sample(none, **options, min_p_S1=torch.empty(0, 1)).shape == (0,)
    assert log_softmax(torch.zeros(2, 9), places).shape == (0, 9)


WRONG: list[tuple[str, dict[str, Any]]] = [
    (r"sample: temperature must be torch.float32 \[2, 1\] on cpu, got", {"temperature_S1": torch.ones(2)}),
    (r"sample: seeds must be int64 \[2\] on cpu, dense, got torch.int32", {"seeds_S": torch.zeros(2).int()}),
    (r"sample: positions must be int64 \[2\]", {"positions_S": torch.zeros(3).long()}),
    (r"sample: rows with a temperature need seeds and positions", {"seeds_S": None}),
    (r"floors: min_p must be torch.float32 \[2, 1\]", {"min_p_S1": torch.ones(2, 2)}),
    (r"floors: top.top_k must be torch.int64", {"top": "int32"}),
]


@pytest.mark.parametrize(("message", "wrong"), WRONG)
def test_an_argument_that_does_not_fit_is_named(message: str, wrong: dict[str, Any]) -> None:
    if "top" in wrong:
        top = top_cut({0: (1.0, 2, 1.0)}, 9)
        object.__setattr__(top, "top_k_C1", top.top_k_C1.int())
        wrong = {"top": top}
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(2, 9), **noise(2) | wrong)


def test_logits_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"sample: logits must be \[rows, vocabulary\] .* got torch.float64"):
        sample(torch.zeros(2, 9).double())
    with pytest.raises(ValueError, match="vocabulary dense, got"):
        sample(torch.zeros(9, 2).T)
    with pytest.raises(ValueError, match="sample: logits must have a vocabulary"):
        sample(torch.zeros(2, 0))
    with pytest.raises(ValueError, match=r"choose: ids must be int64 \[2, 3\]"):
        choose(torch.zeros(2, 3), torch.zeros(2, 3).int())
    with pytest.raises(ValueError, match=r"choose: values must be float32 \[ranks, rows\]"):
        choose(torch.zeros(0, 3), torch.zeros(0, 3).long())


def test_penalties_that_do_not_fit_are_named() -> None:
    column = torch.ones(1, 1)
    options = {
        "places_P": torch.zeros(1, dtype=torch.int64),
        "rows_P": torch.zeros(1, dtype=torch.int64),
        "repetition_P1": column,
        "presence_P1": column,
        "frequency_P1": column,
        "in_prompt_RV": torch.zeros(1, 9, dtype=torch.bool),
        "num_in_output_RV": torch.zeros(1, 9, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=r"penalise_: logits must be torch.float32 \[rows, 9\]"):
        penalise_(torch.zeros(2, 9).half(), **options)
    with pytest.raises(ValueError, match=r"penalise_: num_in_output must be torch.int32 \[rows, 9\]"):
        penalise_(torch.zeros(2, 9), **options | {"num_in_output_RV": torch.zeros(1, 8).int()})
