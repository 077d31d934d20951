"""What holds for all kernels, whatever they compute: names of their own, and addresses that stay."""

from collections import Counter

import pytest
import torch

pytest.importorskip("triton")

from headway_kernels.launch import bounds_tensor
from kernel_names import kernel_names


def test_no_two_kernels_share_a_name_so_that_a_profile_tells_them_apart() -> None:
    assert len(kernel_names()) > 20
    assert not [name for name, count in Counter(kernel_names()).items() if count > 1]


def test_bounds_on_the_device_are_never_dropped() -> None:
    """Captured graphs hold their addresses: more bounds than any cache of a fixed size may be in use."""
    device = torch.device("cpu")
    first = bounds_tensor((0, 1), device)
    for heads in range(2, 300):
        bounds_tensor((0, heads), device)
    assert bounds_tensor((0, 1), device) is first
