"""`gemv` and the choice between it and cuBLAS on a GPU, at sizes of real models.

The kernels are imported by the tests: where there is no GPU, they run in Triton's interpreter elsewhere.
"""

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.gpu

# (outputs, inputs): Llama-3.1-8B's and Falcon-7B's layers, shards of uneven MLPs and vocabularies
SIZES = [(6144, 4096), (28672, 4096), (4096, 14336), (4672, 4544), (4544, 18176), (768, 4096), (42753, 4544)]
# (outputs, inputs), dtype, how far apart rows are beyond that: loads of 16, 8 and 2 bytes
ODD: list[tuple[tuple[int, int], torch.dtype, int]] = [
    ((1023, 4552), torch.float16, 8),
    ((4544, 4548), torch.bfloat16, 0),
    ((129, 1027), torch.bfloat16, 4),
    ((1, 1), torch.float16, 0),
]


def check(num_tokens: int, size: tuple[int, int], **options: Any) -> None:
    from gemv_cases import check
    from headway_kernels.gemv import gemv

    torch.manual_seed(num_tokens)
    check(gemv, num_tokens, *size, **{"device": "cuda", "dtype": torch.bfloat16} | options)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8, 16])
def test_sizes_of_models(num_tokens: int, size: tuple[int, int]) -> None:
    check(num_tokens, size, bias=num_tokens != 1, residual=num_tokens != 1)


@pytest.mark.parametrize(("size", "dtype", "beside"), ODD, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 4, 16])
def test_odd_sizes(num_tokens: int, size: tuple[int, int], dtype: torch.dtype, beside: int) -> None:
    check(num_tokens, size, dtype=dtype, beside=beside, bias=True, residual=True)


@pytest.mark.parametrize(("size", "beside"), [((3072, 2048), 0), ((131, 2050), 1)], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 4, 16])
def test_float32_stays_float32(num_tokens: int, size: tuple[int, int], beside: int) -> None:
    """Sums of 2048 products in turn: an error of 1e-6 is to be expected, and tf32 would make one of 1e-3.
    (cuBLAS may add up parts side by side, which is more exact: no measure for a sum in turn.)"""
    from gemv_cases import cut_out
    from headway_kernels.gemv import gemv

    torch.manual_seed(num_tokens)
    x, weight = (torch.randn(rows, size[1], device="cuda") for rows in (num_tokens, size[0]))
    exact = x.double() @ weight.double().mT
    found = gemv(cut_out(x, beside), cut_out(weight, beside))
    assert float((found - exact).norm() / exact.norm()) < 5e-6


def test_more_values_than_32_bits_count() -> None:
    """The last row of a weight of 2^31 values and some."""
    from headway_kernels.gemv import gemv

    weight = torch.empty((1 << 16) + 1, 1 << 15, dtype=torch.bfloat16, device="cuda")
    weight[-1] = 1
    for num_tokens in (1, 16):
        out = gemv(torch.ones(num_tokens, 1 << 15, dtype=torch.bfloat16, device="cuda"), weight)
        assert bool((out[:, -1] == 1 << 15).all())


@pytest.mark.parametrize("num_tokens", [1, 4, 16])
def test_a_row_depends_on_itself_alone(num_tokens: int) -> None:
    """Not on the time, and not on what is beside it."""
    from headway_kernels.gemv import gemv

    torch.manual_seed(0)
    x = torch.randn(num_tokens, 4096, device="cuda").bfloat16()
    weight = torch.randn(6144, 4096, device="cuda").bfloat16()
    first = gemv(x, weight)
    for _ in range(20):
        assert torch.equal(gemv(x, weight), first)
    x[1:] = torch.nan
    assert torch.equal(gemv(x, weight)[0], first[0])


@pytest.mark.parametrize("num_tokens", [0, 1, 4, 5, 64])
def test_linear_goes_either_way(num_tokens: int) -> None:
    from gemv_cases import check
    from headway_kernels import gpu

    def linear(*tensors: Any, out_TO: torch.Tensor) -> torch.Tensor:
        return out_TO.copy_(gpu.linear(*tensors))

    torch.manual_seed(0)
    check(linear, num_tokens, 4096, 4096, dtype=torch.bfloat16, device="cuda", bias=True, residual=True)
