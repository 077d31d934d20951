"""`silu_mul`, `gelu_mul` and `clamped_silu_mul` at sizes of Llama, Gemma and gpt-oss."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from headway_kernels.gated_mlp import clamped_silu_mul, gelu_mul, silu_mul
from launches import Launch


def _gated_mlp(
    device: str, activation: Callable[[Tensor], Tensor], *, size: int, dtype: torch.dtype = torch.bfloat16
) -> Launch:
    gate_up = torch.randn(64, 2 * size, device=device).to(dtype)
    return lambda: activation(gate_up)


LAUNCHES = {
    "silu_mul": partial(_gated_mlp, activation=silu_mul, size=14_336),
    "silu_mul, float32": partial(_gated_mlp, activation=silu_mul, size=8192, dtype=torch.float32),
    "gelu_mul": partial(_gated_mlp, activation=gelu_mul, size=9216),
    "gelu_mul, tanh": partial(_gated_mlp, activation=partial(gelu_mul, approximate="tanh"), size=9216),
    "clamped_silu_mul": partial(
        _gated_mlp, activation=partial(clamped_silu_mul, clamp=7.0, alpha=1.702), size=2880
    ),
}
