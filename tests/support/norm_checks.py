"""Run a norm on poisoned memory and judge it: shared by interpreter and GPU tests."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_cases import assert_as_exact
from headway_kernels import reference

EPS = 1e-5
BESIDE = 16  # values of NaN behind each row, each weight and each result
Norm = Callable[..., tuple[Tensor, Tensor]]


def check_rms_norm(
    rms_norm: Norm, *shape: int, dtype: torch.dtype, weight_dtype: torch.dtype | None = None, **options: Any
) -> None:
    """shape: [T, H] or [T, heads, H]; options: of `_check`."""
    weight = _vector(shape[-1], weight_dtype or dtype, options)

    def meaning(total: Tensor) -> Tensor:
        return reference.rms_norm(total, weight.to(total.dtype), EPS)[0]

    _check(
        lambda x, *residual, **outs: rms_norm(x, weight, EPS, *residual, **outs),
        meaning,
        shape,
        dtype,
        **options,
    )


def check_layer_norm(
    layer_norm: Norm,
    *shape: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None = None,
    biased: bool = True,
    **options: Any,
) -> None:
    weight = _vector(shape[-1], weight_dtype or dtype, options)
    bias = _vector(shape[-1], weight_dtype or dtype, options) if biased else None

    def meaning(total: Tensor) -> Tensor:
        wide_bias = None if bias is None else bias.to(total.dtype)
        return reference.layer_norm(total, weight.to(total.dtype), wide_bias, EPS)[0]

    _check(
        lambda x, *residual, **outs: layer_norm(x, weight, bias, EPS, *residual, **outs),
        meaning,
        shape,
        dtype,
        **options,
    )


def _check(
    norm: Norm,
    meaning: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    with_residual: bool = True,
    offset: int = 0,
    device: str = "cpu",
) -> None:
    """The sum must be PyTorch's to the bit; the norm of it is judged against float64, beside float32 rounded
    once. offset: where each row begins in memory, so that it may lie at no address that is a multiple of 16.
    """
    x = _poisoned(shape, dtype, offset, device)
    out, out_beside = _result(shape, dtype, device)
    if with_residual:
        residual = _poisoned(shape, dtype, offset, device)
        total, total_beside = _result(shape, dtype, device)
        found, found_total = norm(x, residual, out_TH=out, sum_TH=total)
        assert found_total is total
        assert torch.equal(total, x + residual)
        assert bool(total_beside.isnan().all())
    else:
        found, total = norm(x, out_TH=out)
        assert total is x
    assert found is out
    assert bool(out_beside.isnan().all())
    assert_as_exact(out, meaning(total.float()).to(dtype), meaning(total.double()))


def _vector(size: int, dtype: torch.dtype, options: dict[str, Any]) -> Tensor:
    device = options.get("device", "cpu")
    whole = torch.full((size + BESIDE,), torch.nan, dtype=dtype, device=device)
    whole[:size] = torch.randn(size, device=device)
    return whole[:size]


def _poisoned(shape: tuple[int, ...], dtype: torch.dtype, offset: int, device: str) -> Tensor:
    """Rows, or heads between those of others, with NaN between one token's and the next."""
    num_tokens, *heads, size = shape
    if heads:
        whole = torch.full((num_tokens, heads[0] + 2, size), torch.nan, dtype=dtype, device=device)
        values = whole[:, 1:-1]
    else:
        whole = torch.full((num_tokens, size + BESIDE), torch.nan, dtype=dtype, device=device)
        values = whole[:, offset : offset + size]
    return values.copy_(torch.randn(shape, device=device))


def _result(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """(a tensor of NaN to be filled, the memory behind it)"""
    size = torch.Size(shape).numel()
    whole = torch.full((size + BESIDE,), torch.nan, dtype=dtype, device=device)
    return whole[:size].view(shape), whole[size:]
