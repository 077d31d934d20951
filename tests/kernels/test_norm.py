"""RMS and layer norm in Triton's interpreter: any sizes, with NaN in whatever must not be read.

Its rounding to bfloat16 is not a GPU's, so sums in bfloat16 are for `tests/gpu`.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from headway_kernels import reference
from headway_kernels.norm import MOST_VALUES, layer_norm, rms_norm
from headway_kernels.tiles import norm_tile
from norm_checks import EPS, check_layer_norm, check_rms_norm

DTYPES = st.sampled_from([torch.float32, torch.float16])
SIZES = st.integers(1, 100) | st.integers(500, 1100)
RANDOM = st.integers(0, 2**16)


@settings(max_examples=25)
@given(st.integers(0, 5), SIZES, DTYPES, st.booleans(), st.booleans(), RANDOM)
def test_rms_norm_of_any_rows(
    rows: int, size: int, dtype: torch.dtype, with_residual: bool, wide_weight: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    weight_dtype = torch.float32 if wide_weight else dtype
    check_rms_norm(rms_norm, rows, size, dtype=dtype, weight_dtype=weight_dtype, with_residual=with_residual)


@settings(max_examples=25)
@given(st.integers(0, 5), SIZES, DTYPES, st.booleans(), st.booleans(), RANDOM)
def test_layer_norm_of_any_rows(
    rows: int, size: int, dtype: torch.dtype, with_residual: bool, biased: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    check_layer_norm(layer_norm, rows, size, dtype=dtype, with_residual=with_residual, biased=biased)


@settings(max_examples=20)
@given(st.integers(0, 40), st.integers(1, 5), st.sampled_from([16, 64, 80, 128, 512]), DTYPES, RANDOM)
def test_heads_are_normalised_between_those_of_others(
    tokens: int, heads: int, head_dim: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    check_rms_norm(rms_norm, tokens, heads, head_dim, dtype=dtype, with_residual=False)


def test_heads_may_have_a_residual() -> None:
    check_rms_norm(rms_norm, 3, 2, 40, dtype=torch.float16)


@pytest.mark.parametrize("size", [2048, 4544, 8192])
def test_rows_of_real_models(size: int) -> None:
    torch.manual_seed(size)
    check_rms_norm(rms_norm, 2, size, dtype=torch.float16)
    check_layer_norm(layer_norm, 2, size, dtype=torch.float16)


def test_rows_begin_anywhere() -> None:
    check_rms_norm(rms_norm, 3, 96, dtype=torch.float16, offset=1)


@pytest.mark.parametrize("size", [64, 600])
def test_a_row_is_the_same_in_any_batch(size: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(40, size), torch.randn(size)
    alone = torch.cat([rms_norm(row[None], weight, EPS)[0] for row in x])
    assert torch.equal(rms_norm(x, weight, EPS)[0], alone)


def test_a_float32_weight_keeps_its_digits() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 64).half(), 1 + torch.randn(64) / 300
    assert torch.equal(rms_norm(x, weight, EPS)[0], reference.rms_norm(x, weight, EPS)[0])


def test_layer_norm_far_from_zero_loses_nothing_to_cancellation() -> None:
    """E[s^2] - E[s]^2 in float32 would be wrong in its first digit here."""
    torch.manual_seed(0)
    x, weight = 3000 + torch.randn(3, 300), torch.ones(300)
    expected = torch.nn.functional.layer_norm(x.double(), (300,), eps=EPS).float()
    torch.testing.assert_close(layer_norm(x, weight, None, EPS)[0], expected, atol=2e-3, rtol=0)


def test_squares_beyond_half_precision() -> None:
    x = torch.full((2, 64), 1000.0).half()
    assert torch.equal(rms_norm(x, torch.ones(64).half(), EPS)[0], torch.ones(2, 64).half())


def test_results_are_made_where_none_are_given() -> None:
    x, residual, weight = torch.randn(2, 3, 16)[:, 1], torch.randn(2, 16), torch.randn(16)
    normed, total = rms_norm(x, weight, EPS, residual)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(total, weight, EPS)[0])
    assert normed.is_contiguous()
    assert total.is_contiguous()


@pytest.mark.parametrize("size", [1, 16, 33, 64, 128, 256, 511, 512, 768, 4096, 4544, 8192, MOST_VALUES])
def test_a_tile_holds_whole_rows(size: int) -> None:
    tile = norm_tile(size)
    assert size <= tile.wide < 2 * max(size, 16)
    assert 1 <= tile.num_warps <= 16
    values = tile.rows * tile.wide // (32 * tile.num_warps)  # of a thread
    assert 8 <= values <= 64


ROWS, WEIGHT = torch.zeros(2, 8), torch.zeros(8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x_TH": torch.zeros(8)}, r"x_TH must be \[T, H\] or \[T, heads, H\].* got torch.float32 \[8\]"),
        ({"x_TH": ROWS.double()}, "x_TH must be .* 16- or 32-bit float.* got torch.float64"),
        ({"x_TH": torch.zeros(8, 2).T}, r"x_TH must be .* H dense .*strides \[1, 2\]"),
        ({"x_TH": torch.zeros(2, 0)}, r"x_TH must be .* got torch.float32 \[2, 0\]"),
        ({"x_TH": torch.zeros(1, MOST_VALUES + 1)}, "x_TH must be .* up to 32768, got .*32769"),
        ({"weight_H": torch.zeros(7)}, r"weight_H must be .* \[8\] on cpu.* got torch.float32 \[7\]"),
        ({"weight_H": WEIGHT.half()}, "weight_H must be torch.float32 .* got torch.float16"),
        ({"weight_H": torch.zeros(16)[::2]}, r"weight_H must be .* dense, got .* strides \[2\]"),
        (
            {"residual_TH": torch.zeros(3, 8)},
            r"residual_TH must be .* \[2, 8\] .* got torch.float32 \[3, 8\]",
        ),
        ({"residual_TH": ROWS.half()}, "residual_TH must be torch.float32 .* got torch.float16"),
        ({"out_TH": ROWS.half()}, "out_TH must be torch.float32 .* got torch.float16"),
        ({"out_TH": torch.zeros(2, 16)[:, :8]}, r"out_TH must be contiguous, got .* strides \[16, 1\]"),
        ({"sum_TH": ROWS}, "sum_TH must come with residual_TH"),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict[str, Any], message: str) -> None:
    fitting = {"x_TH": ROWS, "weight_H": WEIGHT, "eps": EPS}
    with pytest.raises(ValueError, match=f"rms_norm: {message}"):
        rms_norm(**fitting | arguments)
    with pytest.raises(ValueError, match=f"layer_norm: {message}"):
        layer_norm(**fitting | {"bias_H": None} | arguments)


def test_a_bias_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"layer_norm: bias_H must be .* \[8\] .* got torch.float32 \[9\]"):
        layer_norm(ROWS, WEIGHT, torch.zeros(9), EPS)
