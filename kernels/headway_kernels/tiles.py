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


@dataclass(frozen=True, kw_only=True, slots=True)
class ShotTile:
    """words: of 4 bytes of data, that a program of `all_reduce` in one shot sends and adds up at a time."""

    words: int
    num_warps: int


# Bytes a rank may send in one shot beyond what it would send in two: about what NVLink carries (450 GB/s a
# way on an H200) in the time that the second exchange takes.
SHOT_EXTRA_BYTES = 1 << 20


def in_one_shot(num_bytes: int, world_size: int) -> bool:
    """Whether an all-reduce goes in one shot: it sends 2 (n - 1) times the bytes, two shots 2 (n - 1) / n."""
    extra = 2 * num_bytes * (world_size - 1) ** 2 // world_size
    return extra <= SHOT_EXTRA_BYTES


def shot_tile(num_words: int, num_programs: int) -> ShotTile:
    """A tile a program; two words a thread, which are one 16-byte access, as long as there are threads."""
    words = max(padded(-(-num_words // num_programs)), 256)
    return ShotTile(words=words, num_warps=min(words // 64, 16))


def row_tile(num_words: int) -> ShotTile:
    words = max(padded(num_words), 256)
    return ShotTile(words=words, num_warps=min(words // 64, 16))


SENT_IN_REGISTERS = 16  # 8-byte words a thread, of all senders together


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
