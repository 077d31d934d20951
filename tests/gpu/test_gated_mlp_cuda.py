"""Gated activations on a GPU: fresh inputs, poisoned memory, sizes of real models, judged against float64.

The kernels are imported by the tests: where there is no GPU, they run in Triton's interpreter elsewhere.
"""

import pytest
import torch

from gated_mlp_checks import VARIANTS, check_gated_mlp

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("size", [8192, 14_336])
def test_silu_of_llama(size: int) -> None:
    from headway_kernels import gpu

    for rows in (0, 1, 16, 257, 2048):
        check_gated_mlp(gpu, "silu", rows, size, dtype=torch.bfloat16, device="cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_activation(variant: str, dtype: torch.dtype) -> None:
    from headway_kernels import gpu

    check_gated_mlp(gpu, variant, 5, 2880, dtype=dtype, device="cuda")


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("size", [1, 33, 1025])
def test_odd_sizes_and_places(size: int, offset: int) -> None:
    from headway_kernels import gpu

    check_gated_mlp(gpu, "silu", 7, size, dtype=torch.bfloat16, offset=offset, device="cuda")


def test_rows_far_apart_in_memory() -> None:
    """Further than 2^31 values."""
    from headway_kernels import gpu

    apart, width = 1 << 30, 2048
    memory = torch.empty(2 * apart + width, device="cuda", dtype=torch.bfloat16)
    rows = memory.as_strided((3, width), (apart, 1)).copy_(torch.randn(3, width, device="cuda"))
    assert torch.equal(gpu.silu_mul(rows), gpu.silu_mul(rows.contiguous()))
