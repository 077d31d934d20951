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


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTile:
    """rows: whole rows that a program takes; wide: the values of one, padded to a power of two."""

    rows: int
    wide: int
    num_warps: int


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


def norm_tile(size: int) -> RowTile:
    """The tile of a norm over rows of `size` values: it depends on nothing else, so that a row's sums do not.

    Reasoned, not swept. A thread takes 8 values, one 16-byte load in half precision, until 16 warps are at
    work: a step that decodes has fewer rows than the device has multiprocessors, and waits for one row. Of
    short rows, such as heads, 2048 values make a program.
    """
    wide = padded(size)
    if wide < 512:
        return RowTile(rows=2048 // wide, wide=wide, num_warps=4)
    return RowTile(rows=1, wide=wide, num_warps=min(wide // 256, 16))


def heads_a_program(head_dim: int, rotated: int, num_heads: int, dtype: torch.dtype) -> tuple[int, int]:
    """(heads, warps) of a program of `kv_write`: 16 bytes a thread from each half of wholly rotated heads.

    Where less is rotated, its tiles are small: fewer warps keep their loads wide.
    """
    wide = padded(head_dim, 1)
    heads = max(4 * 32 * 2 * 16 // dtype.itemsize // wide, 1)
    num_warps = 2 if rotated and 2 * padded(rotated // 2, 1) < wide else 4
    return min(heads, padded(num_heads, 1)), num_warps


def vocab_chunk(num_rows: int, vocab_size: int) -> int:
    """Tokens that a program of the op `sample` takes: 8 values a thread keep 64-bit hashes in registers; with
    rows enough for every multiprocessor many times over, twice that halves what is left to choose among.
    """
    return 2048 if num_rows * vocab_size > 1 << 21 else 1024


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
