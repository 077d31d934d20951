"""Gated activations in Triton's interpreter: any sizes, with NaN in whatever must not be read."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from gated_mlp_checks import VARIANTS, check_gated_mlp
from headway_kernels import gated_mlp, reference
from headway_kernels.gated_mlp import VALUES

# as on a GPU: the exponential of a large number is infinite, and its reciprocal zero
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
DTYPES = [torch.float32, torch.float16]
SIZES = st.integers(1, 70) | st.sampled_from([VALUES - 1, VALUES, VALUES + 1])


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=15)
@given(st.integers(0, 4), SIZES, st.sampled_from(DTYPES), st.sampled_from([0, 1]), st.integers(0, 2**16))
def test_any_rows(variant: str, rows: int, size: int, dtype: torch.dtype, offset: int, seed: int) -> None:
    torch.manual_seed(seed)
    check_gated_mlp(gated_mlp, variant, rows, size, dtype=dtype, offset=offset)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_largest_values_neither_overflow_nor_become_nan(variant: str) -> None:
    name, options = VARIANTS[variant]
    gate = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 30.0, -30.0, 200.0, -200.0, 1e30, -1e30])
    gate_up = torch.stack((gate, torch.full_like(gate, 0.5)), 1)
    found = getattr(gated_mlp, name)(gate_up, **options)
    expected = getattr(reference, name)(gate_up.double(), **options)
    torch.testing.assert_close(found.double(), expected, atol=1e-9, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_stays_nan_and_in_its_place(variant: str) -> None:
    name, options = VARIANTS[variant]
    gate_up = torch.ones(1, 6)
    gate_up[0, 0] = gate_up[0, 4] = torch.nan  # a gate, and what another is multiplied by
    found = getattr(gated_mlp, name)(gate_up, **options)
    assert found.isnan().tolist() == [[True, True, False]]


def test_no_columns_are_no_work() -> None:
    assert gated_mlp.silu_mul(torch.zeros(3, 0)).shape == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gate_up_T2I": torch.zeros(2, 7)}, r"gate_up_T2I must be \[T, 2 I\] .* got torch.float32 \[2, 7\]"),
        ({"gate_up_T2I": torch.zeros(8)}, r"gate_up_T2I must be \[T, 2 I\] .* got torch.float32 \[8\]"),
        ({"gate_up_T2I": torch.zeros(2, 8).double()}, "gate_up_T2I must be .* 32-bit float.* torch.float64"),
        ({"gate_up_T2I": torch.zeros(8, 2).T}, r"gate_up_T2I must be .* rows dense, .* strides \[1, 2\]"),
        ({"out_TI": torch.zeros(2, 8)}, r"out_TI must be .* \[2, 4\] .* got torch.float32 \[2, 8\]"),
        ({"out_TI": torch.zeros(2, 4).half()}, "out_TI must be torch.float32 .* got torch.float16"),
        ({"out_TI": torch.zeros(4, 2).T}, r"out_TI must be .* contiguous, got .* strides \[1, 2\]"),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_does_not_fit_is_named(variant: str, arguments: dict[str, Any], message: str) -> None:
    name, options = VARIANTS[variant]
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        getattr(gated_mlp, name)(**{"gate_up_T2I": torch.zeros(2, 8)} | options | arguments)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match='gelu_mul: approximate must be "none" or "tanh", got \'erf\''):
        gated_mlp.gelu_mul(torch.zeros(2, 8), "erf")
    with pytest.raises(ValueError, match="clamped_silu_mul: clamp must be positive, got 0"):
        gated_mlp.clamped_silu_mul(torch.zeros(2, 8), clamp=0, alpha=1.7)
