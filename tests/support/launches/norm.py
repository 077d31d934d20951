"""`rms_norm` and `layer_norm`: of a step's rows with their residual, and of queries in a fused projection."""

from functools import partial

import torch

from headway_kernels.norm import layer_norm, rms_norm
from launches import Launch


def _rms_norm(
    device: str, *, rows: int, size: int, dtype: torch.dtype = torch.bfloat16, wide_weight: bool = False
) -> Launch:
    x, residual = (torch.randn(rows, size, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(size, device=device).to(torch.float32 if wide_weight else dtype)
    return lambda: rms_norm(x, weight, 1e-5, residual)


def _layer_norm(device: str, *, rows: int, size: int) -> Launch:
    x, residual = (torch.randn(rows, size, device=device).bfloat16() for _ in range(2))
    weight, bias = (torch.randn(size, device=device).bfloat16() for _ in range(2))
    return lambda: layer_norm(x, weight, bias, 1e-5, residual)


def _heads(device: str, *, head_dim: int) -> Launch:
    """Of 32 query heads that lie beside 8 of keys and 8 of values; there is no sum to return."""
    q = torch.randn(64, 48, head_dim, device=device).bfloat16()[:, :32]
    weight = torch.randn(head_dim, device=device).bfloat16()
    return lambda: rms_norm(q, weight, 1e-6)[0]


LAUNCHES = {
    "rms_norm, 4096 values": partial(_rms_norm, rows=64, size=4096),
    "rms_norm, 5376 values, float32 weight": partial(_rms_norm, rows=3, size=5376, wide_weight=True),
    "rms_norm, 8192 values, float32": partial(_rms_norm, rows=3, size=8192, dtype=torch.float32),
    "rms_norm, heads of 128": partial(_heads, head_dim=128),
    "rms_norm, heads of 64": partial(_heads, head_dim=64),
    "layer_norm, 4544 values": partial(_layer_norm, rows=64, size=4544),
}
