"""The norms on a GPU: fresh inputs, poisoned memory, sizes of real models, all judged against float64.

The kernels are imported by the tests: where there is no GPU, they run in Triton's interpreter elsewhere.
"""

from typing import Any

import pytest
import torch

from norm_checks import EPS, check_layer_norm, check_rms_norm

pytestmark = pytest.mark.gpu
ROWS = [0, 1, 16, 257, 4096]


def rms(*shape: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> None:
    from headway_kernels.gpu import rms_norm

    check_rms_norm(rms_norm, *shape, dtype=dtype, device="cuda", **options)


def layer(*shape: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> None:
    from headway_kernels.gpu import layer_norm

    check_layer_norm(layer_norm, *shape, dtype=dtype, device="cuda", **options)


@pytest.mark.parametrize("size", [2048, 4096, 8192])
def test_rms_norm(size: int) -> None:
    for rows in ROWS:
        rms(rows, size)


@pytest.mark.parametrize("size", [768, 4544])
def test_layer_norm(size: int) -> None:
    for rows in ROWS:
        layer(rows, size)


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_heads_between_those_of_others(head_dim: int) -> None:
    for tokens in ROWS:
        rms(tokens, 8, head_dim, with_residual=False)


def test_gemmas_weight_in_float32() -> None:
    rms(300, 3840, weight_dtype=torch.float32)
    rms(300, 4, 256, weight_dtype=torch.float32, with_residual=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes(dtype: torch.dtype) -> None:
    rms(7, 4096, dtype=dtype)
    layer(7, 1600, dtype=dtype, biased=False)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("size", [1, 33, 1001])
def test_odd_sizes_and_places(size: int, offset: int) -> None:
    rms(5, size, offset=offset)


def test_the_widest_row() -> None:
    from headway_kernels.norm import MOST_VALUES

    rms(3, MOST_VALUES)


def test_a_row_is_the_same_in_any_batch() -> None:
    from headway_kernels.gpu import rms_norm

    x, weight = torch.randn(300, 4096, device="cuda").bfloat16(), torch.randn(4096, device="cuda").bfloat16()
    whole = rms_norm(x, weight, EPS)[0]
    for rows in (1, 16, 64):
        assert torch.equal(rms_norm(x[:rows], weight, EPS)[0], whole[:rows])


def test_rows_far_apart_in_memory() -> None:
    """Further than 2^31 values."""
    from headway_kernels.gpu import rms_norm

    apart, size = 1 << 30, 1024
    memory = torch.empty(2 * apart + size, device="cuda", dtype=torch.bfloat16)
    x = memory.as_strided((3, size), (apart, 1)).copy_(torch.randn(3, size, device="cuda"))
    weight = torch.randn(size, device="cuda").bfloat16()
    assert torch.equal(rms_norm(x, weight, EPS)[0], rms_norm(x.contiguous(), weight, EPS)[0])
