"""What the launchers of the attention kernels share: checks of their arguments, and facts about devices."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def check_attention(
    op: str,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    *,
    table: Tensor,
    context_lens: Tensor,
    group_bounds: Sequence[int],
    sinks: Tensor | None,
    slopes: Tensor | None,
    scale: float,
) -> None:
    """Raise ValueError, naming argument, expected and found, where shapes, dtypes, strides or devices differ
    from what the kernels take.
    """
    if q.ndim != 3 or q.dtype not in DTYPES or q.stride(2) != 1:
        raise _error(op, "q", "[tokens, heads, head_dim] in a 16- or 32-bit float, head_dim dense", q)
    if k_pool.ndim != 4 or k_pool.shape[1] != len(group_bounds) - 1 or k_pool.shape[3] != q.shape[2]:
        raise _error(op, "k_pool", f"[pages, {len(group_bounds) - 1}, page_size, {q.shape[2]}]", k_pool)
    if v_pool.shape != k_pool.shape:
        raise _error(op, "v_pool", f"the shape of k_pool, {tuple(k_pool.shape)}", v_pool)
    for name, pool in (("k_pool", k_pool), ("v_pool", v_pool)):
        if pool.dtype != q.dtype or pool.device != q.device or pool.stride(3) != 1:
            raise _error(op, name, f"{q.dtype} on {q.device}, head_dim dense", pool)
    if group_bounds[0] != 0 or group_bounds[-1] != q.shape[1]:
        raise ValueError(f"{op}: group_bounds must go from 0 to {q.shape[1]} heads, got {list(group_bounds)}")
    if table.dtype != torch.int32 or table.shape[:1] != context_lens.shape or table.device != q.device:
        raise _error(op, "page_table", f"int32 [{len(context_lens)}, pages] on {q.device}", table)
    if context_lens.dtype != torch.int32 or context_lens.device != q.device:
        raise _error(op, "context_lens", f"int32 on {q.device}", context_lens)
    for name, values in (("sinks_Q", sinks), ("alibi_slopes_Q", slopes)):
        if values is not None and (values.shape != q.shape[1:2] or values.device != q.device):
            raise _error(op, name, f"[{q.shape[1]}] on {q.device}", values)
    if not scale > 0:
        raise ValueError(f"{op}: scale must be positive, got {scale}")


def heads_of(group_bounds: Sequence[int]) -> int:
    """The most query heads that a KV head has."""
    return max(high - low for low, high in pairwise(group_bounds))


def precision(dtype: torch.dtype) -> str:
    """float32 stays float32 in matrix products; tf32 would not."""
    return "ieee" if dtype == torch.float32 else "tf32"


@lru_cache
def bounds_tensor(group_bounds: tuple[int, ...], device: torch.device) -> Tensor:
    """The boundaries on the device: they never change, so one copy serves every step (and graph)."""
    return torch.tensor(group_bounds, dtype=torch.int32, device=device)


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    """The device's compute capability; Triton's interpreter on a CPU counts as a Hopper GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


@lru_cache
def num_multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _error(op: str, name: str, expected: str, found: Tensor) -> ValueError:
    got = f"{found.dtype} {list(found.shape)} on {found.device}, strides {list(found.stride())}"
    return ValueError(f"{op}: {name} must be {expected}, got {got}")
