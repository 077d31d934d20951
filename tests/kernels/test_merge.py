"""Merging partial attention results, in Triton's interpreter and in the reference."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from attention_cases import naive
from headway_kernels import merge, reference


def parts_of(num_parts: int, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(num_parts)
    lse = 20 * torch.randn(num_parts, 3, 5)
    lse[torch.rand(lse.shape) < 0.3] = -torch.inf
    parts = torch.randn(num_parts, 3, 5, head_dim).to(dtype)
    parts[lse == -torch.inf] = torch.nan  # what saw nothing may have been left unwritten
    return parts, lse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("num_parts", "head_dim"), [(1, 64), (2, 80), (17, 16), (40, 96)])
def test_the_kernel_equals_the_reference(num_parts: int, head_dim: int, dtype: torch.dtype) -> None:
    parts, lse = parts_of(num_parts, head_dim, dtype)
    out = torch.full(parts.shape[1:], torch.nan, dtype=dtype)
    found, found_lse = merge.merge(parts, lse, out_TQD=out)
    expected, expected_lse = reference.merge(parts.double(), lse.double())
    torch.testing.assert_close(found.double(), expected, atol=2 * torch.finfo(dtype).eps, rtol=1e-3)
    torch.testing.assert_close(found_lse.double(), expected_lse, atol=1e-5, rtol=1e-6)


def test_rows_that_no_part_saw_are_zero() -> None:
    out, lse = merge.merge(torch.full((3, 2, 1, 8), torch.nan), torch.full((3, 2, 1), -torch.inf))
    assert torch.equal(out, torch.zeros(2, 1, 8))
    assert torch.equal(lse, torch.full((2, 1), -torch.inf))


@pytest.mark.parametrize("cuts", [(7, 13), (1, 1, 18), (19, 1)])
def test_attention_in_parts_merges_to_attention(cuts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(length, 4, 8, dtype=torch.float64) for length in (1, 20, 20))
    options = {"bounds": range(5), "scale": 0.3, "dtype": torch.float64}
    whole, whole_lse = naive(q, k, v, **options)
    pieces = [naive(q, *piece, **options) for piece in zip(k.split(cuts), v.split(cuts), strict=True)]
    parts, lse = (torch.stack(values) for values in zip(*pieces, strict=True))
    torch.testing.assert_close(reference.merge(parts, lse), (whole, whole_lse))
    out, found_lse = merge.merge(parts.float(), lse.float())
    torch.testing.assert_close(out, whole.float(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found_lse, whole_lse.float())


def test_arguments_that_do_not_fit_are_named() -> None:
    parts, lse = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 4)
    for wrong, message in [
        ({"parts_KTQD": parts[0]}, r"parts must be \[parts, tokens, heads, head_dim\]"),
        ({"lse_KTQ": lse[..., 0]}, r"lse must be float32 \[2, 3, 4\]"),
        ({"out_TQD": torch.zeros(2, 4, 8)}, r"out_TQD must be contiguous torch\.float32 \[3, 4, 8\]"),
        ({"out_TQD": torch.zeros(3, 4, 9)[..., :8]}, r"out_TQD must be contiguous"),
        ({"out_TQD": torch.zeros(3, 4, 8), "dtype": torch.float16}, r"out_TQD must be .* torch\.float16"),
        ({"lse_TQ": torch.zeros(4, 3).T}, r"lse_TQ must be contiguous torch\.float32 \[3, 4\]"),
    ]:
        arguments: dict[str, Any] = {"parts_KTQD": parts, "lse_KTQ": lse} | wrong
        with pytest.raises(ValueError, match=f"merge: {message}"):
            merge.merge(**arguments)
