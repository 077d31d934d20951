"""What the tests of `gemv` share: tensors cut out of NaN, and the judgement."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_cases import assert_as_exact
from headway_kernels import reference


def cut_out(values: Tensor, beside: int) -> Tensor:
    """The same values in rows that are `beside` longer in memory, NaN between and behind them."""
    whole = torch.full(
        (len(values) + 1, values.shape[1] + beside), torch.nan, dtype=values.dtype, device=values.device
    )
    whole[: len(values), : values.shape[1]] = values
    return whole[: len(values), : values.shape[1]]


def check(
    gemv: Callable[..., Tensor],
    num_tokens: int,
    num_outputs: int,
    num_inputs: int,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    beside: int = 8,
    bias: bool = False,
    residual: bool = False,
    **options: Any,
) -> None:
    """Fresh tensors through `gemv`, judged against float64."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x, weight = random(num_tokens, num_inputs), random(num_outputs, num_inputs)
    more = (random(num_outputs) if bias else None, random(num_tokens, num_outputs) if residual else None)
    out = cut_out(torch.full((num_tokens, num_outputs), torch.nan, dtype=dtype, device=device), beside)
    found = gemv(cut_out(x, beside), cut_out(weight, beside), *more, out_TO=out, **options)
    exact = reference.linear(*(None if one is None else one.double() for one in (x, weight, *more)))
    assert found.data_ptr() == out.data_ptr()
    assert_as_exact(found, reference.linear(x, weight, *more), exact)
