"""Tile sizes and launch parameters: one pure function of operation, shape, dtype and compute capability.

The numbers come from sweeps on the devices named beside them; nothing is tuned at run time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Op = Literal["flash_prefill", "paged_decode"]
HOPPER = (9, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """rows, positions: of a tile of scores; boxes: whether the copy engine fetches a tile of K or V whole;
    programs: of a persistent grid, a multiprocessor.
    """

    rows: int
    positions: int
    num_warps: int
    num_stages: int
    boxes: bool = False
    programs: int = 1


# H200, 2026-11-23, TFLOP/s at 8192 tokens: 511 (D 128, 32/8), 419 (D 64, 32/8), 426 (D 64, 71/1); 128 rows or
# positions and other depths gave less. Two or three programs a multiprocessor hide each other's softmax.
BOXES = Tiles(rows=64, positions=64, num_warps=4, num_stages=3, boxes=True)
LONG = 1024


def tiles(
    op: Op, *, head_dim: int, group: int, page_size: int, dtype: torch.dtype, capability: tuple[int, int]
) -> Tiles:
    """head_dim: values of a head; group: the most query heads that share a KV head."""
    wide = padded(head_dim)
    if op == "paged_decode":
        return _decode(wide, group, dtype, capability)
    if _takes_boxes(head_dim, dtype, capability) and page_size % BOXES.positions == 0:
        return BOXES
    return _prefill(wide, dtype, capability)


def worth_repaging(
    lengths: Sequence[tuple[int, int]],
    *,
    page_size: int,
    head_dim: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> bool:
    """Whether `repage` pays: for whole prompts, one of them long, in pages smaller than a tile."""
    if not _takes_boxes(head_dim, dtype, capability) or page_size % BOXES.positions == 0:
        return False
    whole = all(count == context for count, context in lengths)
    return whole and max(count for count, _ in lengths) >= LONG


def padded(size: int, least: int = 16) -> int:
    """The power of two that a tile of `size` takes up; a matrix product takes no less than `least`."""
    return max(least, 1 << (size - 1).bit_length())


def _prefill(wide: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    if dtype == torch.float32:
        return Tiles(rows=32, positions=32, num_warps=4, num_stages=1 if wide > 128 else 2)
    if capability < HOPPER:
        return Tiles(rows=64, positions=32 if wide > 128 else 64, num_warps=4, num_stages=2)
    if wide > 128:
        return Tiles(rows=128, positions=64, num_warps=8, num_stages=2)
    if wide == 128:
        return Tiles(rows=128, positions=128, num_warps=8, num_stages=2)
    return Tiles(rows=128, positions=64, num_warps=4, num_stages=4)


def _takes_boxes(head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> bool:
    """Hopper's copy engine, for rows of 16-byte multiples; from 129 values on pointers were faster."""
    return capability >= HOPPER and dtype != torch.float32 and head_dim <= 128 and head_dim % 8 == 0


def _decode(wide: int, group: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    rows = min(padded(group), 64 if wide > 128 else 128)
    if dtype == torch.float32:
        return Tiles(rows=min(rows, 32), positions=32, num_warps=4, num_stages=2, programs=2)
    if capability < HOPPER or wide > 128:
        return Tiles(rows=min(rows, 64), positions=32, num_warps=4, num_stages=2, programs=2)
    if rows > 64:
        return Tiles(rows=rows, positions=64, num_warps=8, num_stages=3, programs=1)
    return Tiles(rows=rows, positions=64, num_warps=4, num_stages=2, programs=3)


@dataclass(frozen=True, kw_only=True, slots=True)
class GemvTiles:
    """outputs, inputs: of a tile of the weight; product: whether the matrix units multiply it, by 16 tokens,
    or the vector units, by one token after the other.
    """

    outputs: int
    inputs: int
    num_warps: int = 4
    num_stages: int = 1
    product: bool = False


GEMV_TOKENS = 16  # that the kernel takes at most
VECTOR_TOKENS = 4  # above, sums no longer fit the registers, and multiplying takes longer than reading
# (bytes of a weight, tokens): gemv is chosen from the one on and up to the other, by any line of the
# table. All matrix products of a decode step of Llama-3.1-8B, H200: with one token cuBLAS took 4.05 ms
# and 12 lines of Triton with the same tiles 3.73; with 16, cuBLAS took 4.10. Two tokens and more, and
# smaller weights, have not been compared.
WORTH_GEMV = ((4 << 20, 4),)


def worth_gemv(num_tokens: int, num_outputs: int, num_inputs: int, dtype: torch.dtype) -> bool:
    """Whether `gemv` is taken instead of cuBLAS: for few tokens, and a weight that takes time to read."""
    if num_tokens > (VECTOR_TOKENS if dtype == torch.float32 else GEMV_TOKENS):
        return False
    num_bytes = num_outputs * num_inputs * dtype.itemsize
    return any(num_bytes >= least and num_tokens <= most for least, most in WORTH_GEMV)


def gemv_tiles(num_tokens: int, num_outputs: int, dtype: torch.dtype) -> GemvTiles:
    """Tiles of 8 KiB, four loads of 16 bytes a thread, of fewer rows where there would be few programs. For
    products 8 or 16 KiB, stages ahead: every program fetches x anew, so more rows fetch it less often.
    """
    if num_tokens > VECTOR_TOKENS:
        if dtype == torch.float32:
            return GemvTiles(outputs=32, inputs=32, num_stages=2, product=True)
        if num_outputs < 1 << 14:
            return GemvTiles(outputs=32, inputs=128, num_stages=6, product=True)
        return GemvTiles(outputs=64, inputs=128, num_stages=4, product=True)
    outputs = 4 if num_outputs >= 3072 else 2 if num_outputs >= 1024 else 1
    return GemvTiles(outputs=outputs, inputs=(8 << 10) // dtype.itemsize // outputs)
