"""Run a gated activation on poisoned memory and judge it: shared by interpreter and GPU tests."""

from types import ModuleType
from typing import Any

import torch

from attention_cases import assert_as_exact
from headway_kernels import reference

BESIDE = 16  # values of NaN behind each row, and behind the result
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "silu": ("silu_mul", {}),
    "gelu": ("gelu_mul", {}),
    "gelu, tanh": ("gelu_mul", {"approximate": "tanh"}),
    "clamped silu": ("clamped_silu_mul", {"clamp": 7.0, "alpha": 1.702}),
}


def check_gated_mlp(
    ops: ModuleType,
    variant: str,
    rows: int,
    size: int,
    *,
    dtype: torch.dtype,
    offset: int = 0,
    device: str = "cpu",
) -> None:
    """`rows` rows of 2 * `size` values, against float64, beside float32 rounded once.

    offset: where each row begins in memory, so that it may lie at no address that is a multiple of 16.
    """
    name, options = VARIANTS[variant]
    whole = torch.full((rows, 2 * size + BESIDE), torch.nan, dtype=dtype, device=device)
    gate_up = whole[:, offset : offset + 2 * size]
    gate_up.copy_(4 * torch.randn(rows, 2 * size, device=device))
    memory = torch.full((rows * size + BESIDE,), torch.nan, dtype=dtype, device=device)
    out = memory[: rows * size].view(rows, size)
    assert getattr(ops, name)(gate_up, out_TI=out, **options) is out
    assert bool(memory[rows * size :].isnan().all())
    meaning = getattr(reference, name)
    assert_as_exact(out, meaning(gate_up.float(), **options).to(dtype), meaning(gate_up.double(), **options))
