"""`sample` and its parts on a GPU, at real vocabularies: the reference's tokens and cuts, in any company.

The kernels are imported by the tests: where there is no GPU, they run in Triton's interpreter elsewhere.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from headway_kernels import reference
from sample_checks import check_floors, check_tokens, column, top_cut

pytestmark = pytest.mark.gpu
SIZES = [
    (50_257, torch.bfloat16),
    (128_256, torch.bfloat16),
    (128_256, torch.float16),
    (262_144, torch.float32),
]
CUTS = [(1.0, 50, 0.9), (0.7, 0, 0.95), (1.5, 20, 1.0), (1.0, 0, 0.5), (1e-6, 0, 0.9), (100.0, 1000, 0.99)]


def make_logits(num_rows: int, num_tokens: int, dtype: torch.dtype, scale: float = 3.0) -> Tensor:
    """Fresh rows of a wider tensor whose other values are NaN."""
    wide = torch.full((num_rows, num_tokens + 16), torch.nan, device="cuda")
    wide[:, :num_tokens] = torch.randn(num_rows, num_tokens, device="cuda") * scale
    return wide.to(dtype)[:, :num_tokens]


def noise(num_rows: int) -> dict[str, Any]:
    return {
        "temperature_S1": torch.linspace(0, 2, num_rows, device="cuda")[:, None],
        "seeds_S": torch.randint(-(1 << 62), 1 << 62, (num_rows,), device="cuda"),
        "positions_S": torch.randint(1 << 20, (num_rows,), device="cuda"),
    }


@pytest.mark.parametrize(("num_tokens", "dtype"), SIZES)
@pytest.mark.parametrize("num_rows", [1, 5, 64])
def test_tokens_are_the_reference_s(num_rows: int, num_tokens: int, dtype: torch.dtype) -> None:
    from headway_kernels.gpu import sample

    logits, options = make_logits(num_rows, num_tokens, dtype), noise(num_rows)
    assert torch.equal(sample(logits), reference.sample(logits))
    check_tokens(logits, sample(logits, **options), **options)


@pytest.mark.parametrize(("num_tokens", "dtype"), SIZES)
@pytest.mark.parametrize("scale", [3.0, 0.01, 30.0])
def test_cuts_are_the_reference_s(num_tokens: int, dtype: torch.dtype, scale: float) -> None:
    from headway_kernels.gpu import floors

    logits = make_logits(8, num_tokens, dtype, scale)
    logits[7, ::2] = -torch.inf
    temperature = column([1.0, 0.7, 1.5, 0.0, 1.0, 1e-6, 100.0, 1.0], "cuda")
    places = (0, 1, 2, 7, 5, 6)
    top = top_cut(dict(zip(places, CUTS, strict=True)), num_tokens, "cuda")
    min_p = column([0.0, 0.1, 0.0, 0.5, 0.05, 0.0, 0.0, 1e-4], "cuda")
    for cut in ((top, None), (None, min_p), (top, min_p)):
        check_floors(floors, logits, temperature, *cut)


def test_a_row_has_the_same_floor_and_token_alone_and_among_many() -> None:
    from headway_kernels.gpu import floors, sample

    logits, options = make_logits(96, 128_256, torch.bfloat16), noise(96)
    options["temperature_S1"] = torch.ones(96, 1, device="cuda")
    cuts = {place: CUTS[place % 4] for place in range(96)}
    top = top_cut(cuts, 128_256, "cuda")
    together = floors(logits, temperature_S1=options["temperature_S1"], top=top)
    tokens = sample(logits, **options, top=top)
    check_tokens(logits, tokens, **options, floor_S1=together)
    for place in (0, 1, 2, 3, 50, 95):
        own = {name: value[place : place + 1] for name, value in options.items()}
        cut = top_cut({0: cuts[place]}, 128_256, "cuda")
        row = logits[place : place + 1]
        alone = floors(row, temperature_S1=own["temperature_S1"], top=cut)
        assert torch.equal(alone[0], together[place])
        assert torch.equal(sample(row, **own, top=cut)[0], tokens[place])


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_shards_choose_the_token_of_the_whole_row(num_ranks: int) -> None:
    from headway_kernels.gpu import choose, floors, sample, sample_shard

    logits, options = make_logits(16, 50_257, torch.bfloat16), noise(16)
    cut = {"min_p_S1": torch.full((16, 1), 0.02, device="cuda")}
    floor = floors(logits, temperature_S1=options["temperature_S1"], **cut)
    parts = logits.tensor_split(num_ranks, dim=1)
    first, best = 0, []
    for part in parts:
        best.append(sample_shard(part, first_token=first, floor_S1=floor, **options))
        first += part.shape[1]
    values, ids = (torch.stack(column) for column in zip(*best, strict=True))
    assert torch.equal(choose(values, ids), sample(logits, **options, **cut))


def test_flat_and_broken_rows() -> None:
    from headway_kernels.gpu import sample

    logits = torch.zeros(4, 128_256, device="cuda", dtype=torch.bfloat16)
    logits[1], logits[2], logits[3, 100_000:] = torch.nan, -torch.inf, torch.inf
    options = noise(4) | {"temperature_S1": torch.ones(4, 1, device="cuda")}
    top = top_cut({0: (1.0, 0, 0.5), 1: (1.0, 0, 0.5), 2: (1.0, 7, 0.5), 3: (1.0, 7, 0.5)}, 128_256, "cuda")
    found = sample(logits, **options, top=top)
    check_tokens(logits, found, **options, floor_S1=column([0.0, -torch.inf, -torch.inf, 3e38], "cuda"))
    assert found[1:3].tolist() == [0, 0]
    assert found[3] >= 100_000


def test_penalties_are_the_reference_s() -> None:
    from headway_kernels.gpu import penalise_

    logits = make_logits(9, 128_256, torch.float32).contiguous()
    table = torch.randn(3, 3, device="cuda")
    options = {
        "places_P": torch.tensor([8, 0, 3], device="cuda"),
        "rows_P": torch.tensor([1, 5, 0], device="cuda"),
        "repetition_P1": table[:, 0:1].exp(),
        "presence_P1": table[:, 1:2],
        "frequency_P1": table[:, 2:3],
        "in_prompt_RV": torch.rand(6, 128_256, device="cuda") < 0.01,
        "num_in_output_RV": torch.randint(3, (6, 128_256), dtype=torch.int32, device="cuda"),
    }
    found, expected = logits.clone(), logits.clone()
    penalise_(found, **options)
    reference.penalise_(expected, **options)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found[[1, 2, 4, 5, 6, 7]], logits[[1, 2, 4, 5, 6, 7]])


@pytest.mark.parametrize(("num_tokens", "dtype"), SIZES)
def test_log_probabilities_are_as_exact_as_pytorch_s(num_tokens: int, dtype: torch.dtype) -> None:
    from headway_kernels.gpu import log_softmax

    logits, places = make_logits(5, num_tokens, dtype), torch.tensor([4, 0, 2], device="cuda")
    exact = logits[places].double().log_softmax(-1)
    found = log_softmax(logits, places)
    own_error = (reference.log_softmax(logits, places) - exact).abs().max()
    assert (found - exact).abs().max() <= 2 * own_error + 1e-6
    assert torch.equal(log_softmax(logits, places[1:2])[0], found[1])
    assert torch.equal(log_softmax(logits.float(), places), found)
