"""What the launchers of the attention kernels share: checks of their arguments, and facts about devices."""

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_HEAD_DIM = 256
MOST_INT32 = 2**31 - 1
MOST_QUERIES = 8  # tokens of a sequence that decode in one step
FUSED = {"enable_fp_fusion": True}  # a product and a sum in one rounding; Triton's default changes in 3.10


def check_attention(
    op: str,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    *,
    table: Tensor,
    context_lens: Tensor,
    num_seqs: int,
    group_bounds: Sequence[int],
    **more: Any,
) -> torch.Size:
    """Raise ValueError, naming argument, expected and found, where shapes, dtypes, strides or devices differ
    from what the kernels take; `more` goes to `check_queries`. Returns the shape of q.
    """
    shape = check_queries(op, q, group_bounds, **more)
    if k_pool.ndim != 4 or k_pool.shape[1] != len(group_bounds) - 1 or k_pool.shape[3] != q.shape[2]:
        raise mismatch(op, "k_pool", f"[pages, {len(group_bounds) - 1}, page_size, {q.shape[2]}]", k_pool)
    _check_alike(op, q, k_pool=k_pool, v_pool=v_pool)
    check_ints(op, "context_lens", context_lens, num_seqs, q.device)
    dense = table.ndim == 2 and (not len(table) or table.shape[1] <= 1 or table.stride(1) == 1)
    if not dense or len(table) != num_seqs or table.dtype != torch.int32 or table.device != q.device:
        expected = f"int32 [{num_seqs}, pages] on {q.device}, rows dense"
        raise mismatch(op, "page_table", expected, table)
    return shape


def check_dense(
    op: str, q: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, group_bounds: Sequence[int], **more: Any
) -> torch.Size:
    """As `check_attention`, for keys and values without pages."""
    shape = check_queries(op, q, group_bounds, **more)
    if k_TGD.ndim != 3 or k_TGD.shape[1:] != (len(group_bounds) - 1, q.shape[2]):
        raise mismatch(op, "k_TGD", f"[tokens, {len(group_bounds) - 1}, {q.shape[2]}]", k_TGD)
    _check_alike(op, q, k_TGD=k_TGD, v_TGD=v_TGD)
    return shape


def check_queries(
    op: str,
    q: Tensor,
    group_bounds: Sequence[int],
    *,
    sinks: Tensor | None,
    slopes: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    out: Tensor | None,
    lse: Tensor | None,
) -> torch.Size:
    """What concerns the queries, their heads and their results. Returns the shape of q."""
    if q.ndim != 3 or q.dtype not in DTYPES or q.stride(2) != 1:
        raise mismatch(op, "q", "[tokens, heads, head_dim] in a 16- or 32-bit float, head_dim dense", q)
    if not 1 <= q.shape[2] <= MOST_HEAD_DIM:
        raise ValueError(f"{op}: head_dim must be from 1 to {MOST_HEAD_DIM}, got {q.shape[2]}")
    if max(q.stride(1), 0 if out is None else out.stride(1)) * q.shape[1] > MOST_INT32:
        raise mismatch(op, "q", "heads within 2^31 values of each other, and so out", q)
    if q.is_cuda and q.device.index != torch.cuda.current_device():
        raise mismatch(op, "q", f"on the current device, cuda:{torch.cuda.current_device()}", q)
    if len(group_bounds) < 2 or group_bounds[0] != 0 or group_bounds[-1] != q.shape[1]:
        raise ValueError(f"{op}: group_bounds must go from 0 to {q.shape[1]} heads, got {list(group_bounds)}")
    if any(low >= high for low, high in pairwise(group_bounds)):
        raise ValueError(f"{op}: group_bounds must rise strictly, got {list(group_bounds)}")
    for name, values in (("sinks_Q", sinks), ("alibi_slopes_Q", slopes)):
        if values is None:
            continue
        fits = values.shape == q.shape[1:2] and values.device == q.device and values.dtype in DTYPES
        if not fits or not values.is_contiguous():
            raise mismatch(op, name, f"[{q.shape[1]}] floats on {q.device}, dense", values)
    if not 0 < scale < inf:
        raise ValueError(f"{op}: scale must be positive and finite, got {scale}")
    if softcap is not None and not 0 < softcap < inf:
        raise ValueError(f"{op}: softcap must be positive and finite, got {softcap}")
    check_window(op, window)
    for name, result, shape, dtype in (
        ("out", out, q.shape, q.dtype),
        ("lse", lse, q.shape[:2], torch.float32),
    ):
        if result is None:
            continue
        if (result.shape, result.dtype, result.device) != (shape, dtype, q.device) or result.stride(-1) != 1:
            expected = f"{dtype} {list(shape)} on {q.device}, its last dimension dense"
            raise mismatch(op, name, expected, result)
    return q.shape


def check_window(op: str, window: int | None) -> None:
    """Raise ValueError for a window that is none."""
    if window is not None and not (isinstance(window, int) and window >= 1):
        raise ValueError(f"{op}: window must be an integer of at least 1, got {window}")


def within_int32(window: int | None) -> int | None:
    """A window to which kernels may add a position: wider than any context is as wide as need be."""
    return None if window is None else min(window, MOST_INT32 // 2)


def check_starts(op: str, name: str, starts: Tensor, lengths: Sequence[object], q: Tensor) -> None:
    """Raise ValueError unless `starts` has an entry more than there are lengths."""
    check_ints(op, name, starts, len(lengths) + 1, q.device)


def check_ints(op: str, name: str, values: Tensor, num: int, device: torch.device) -> None:
    """Raise ValueError unless there are `num` int32 on the device, dense: kernels take no stride of them."""
    fits = values.shape == (num,) and values.dtype == torch.int32 and values.device == device
    if not fits or not values.is_contiguous():
        raise mismatch(op, name, f"int32 [{num}] on {device}, dense", values)


def check_num_queries(op: str, num_queries: int, num_seqs: int, q: Tensor) -> None:
    """Raise ValueError unless q holds so many tokens of each sequence."""
    if not 1 <= num_queries <= MOST_QUERIES:
        raise ValueError(f"{op}: num_queries must be from 1 to {MOST_QUERIES}, got {num_queries}")
    if len(q) != num_seqs * num_queries:
        raise mismatch(op, "q", f"{num_queries} tokens for each of {num_seqs} sequences", q)


def heads_of(group_bounds: Sequence[int]) -> int:
    """The most query heads that a KV head has."""
    return max(high - low for low, high in pairwise(group_bounds))


def precision(dtype: torch.dtype) -> str:
    """float32 stays float32 in matrix products; tf32 would not."""
    return "ieee" if dtype == torch.float32 else "tf32"


@cache
def bounds_tensor(group_bounds: tuple[int, ...], device: torch.device) -> Tensor:
    """The boundaries on the device: they never change, so one copy serves every step (and graph).

    No copy is ever dropped: captured graphs hold its address, and would read what takes its place.
    """
    return torch.tensor(group_bounds, dtype=torch.int32, device=device)


@lru_cache
def capability(device: torch.device) -> tuple[int, int]:
    """The device's compute capability; Triton's interpreter on a CPU counts as a Hopper GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


@lru_cache
def num_multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _check_alike(op: str, q: Tensor, **pair: Tensor) -> None:
    """Raise unless keys and values have one shape, and are of the queries' kind."""
    (k_name, keys), (v_name, values) = pair.items()
    if values.shape != keys.shape:
        raise mismatch(op, v_name, f"the shape of {k_name}, {tuple(keys.shape)}", values)
    for name, one in pair.items():
        if one.dtype != q.dtype or one.device != q.device or one.stride(-1) != 1:
            raise mismatch(op, name, f"{q.dtype} on {q.device}, head_dim dense", one)


def mismatch(op: str, name: str, expected: str, found: Tensor) -> ValueError:
    """The error for an argument that is not as expected."""
    got = f"{found.dtype} {list(found.shape)} on {found.device}, strides {list(found.stride())}"
    return ValueError(f"{op}: {name} must be {expected}, got {got}")
