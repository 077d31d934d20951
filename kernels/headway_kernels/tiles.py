"""Tile sizes and launch parameters: one pure function of operation, shape, dtype and compute capability.

Where a device is named, numbers come from sweeps there; else they are reasoned. Nothing is tuned at run time.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Op = Literal["flash_prefill", "paged_decode"]
HOPPER = (9, 0)
SHARED_LARGE = (9, 10)  # major capabilities of devices with 227 KiB of shared memory a multiprocessor


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """rows, positions: of a tile of scores; groups: of warps that only multiply (`hopper_prefill`), 0 where
    all warps do everything; programs: of a persistent grid, a multiprocessor; registers: the most that a
    thread takes, where the compiler would take more than so many programs leave it.
    """

    rows: int
    positions: int
    num_warps: int
    num_stages: int
    groups: int = 0
    programs: int = 1
    registers: int | None = None

    def __post_init__(self) -> None:
        if self.groups and self.rows != 64 * self.groups:
            raise ValueError(f"Tiles: {self.groups} groups have {64 * self.groups} rows, got {self.rows}")
        for name, number in (("rows", self.rows), ("positions", self.positions)):
            if (name == "positions" or not self.groups) and (number < 16 or number & (number - 1)):
                raise ValueError(f"Tiles: {name} must be a power of two from 16 on, got {number}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTile:
    """rows: whole rows that a program takes; wide: the values of one, padded to a power of two."""

    rows: int
    wide: int
    num_warps: int


def tiles(op: Op, *, head_dim: int, group: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    """head_dim: values of a head; group: the most query heads that share a KV head."""
    wide = padded(head_dim)
    if op == "paged_decode":
        return _decode(wide, group, dtype, capability)
    return _prefill(wide, dtype, capability)


def tiles_by_roles(head_dim: int) -> Tiles:
    """Of `hopper_prefill`: groups of 64 rows, as many as have registers for their part of the result."""
    if head_dim <= 64:
        return Tiles(rows=192, positions=128, num_warps=4, num_stages=3, groups=3)
    return Tiles(rows=128, positions=128 if head_dim <= 128 else 64, num_warps=4, num_stages=2, groups=2)


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


def merge_heads(num_rows: int, group: int) -> int:
    """Query heads of a KV head that a program of `merge_shares` takes: several where there are rows enough to
    keep all multiprocessors busy even so, since most programs find nothing to merge, or few parts.
    """
    return 1 if num_rows * group < 1024 else min(padded(group, 1), 8)


def padded(size: int, least: int = 16) -> int:
    """The power of two that a tile of `size` takes up; a matrix product takes no less than `least`."""
    return max(least, 1 << (size - 1).bit_length())


def _prefill(wide: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    if dtype == torch.float32:
        return Tiles(rows=32, positions=32, num_warps=4, num_stages=1 if wide > 128 else 2)
    if capability[0] not in SHARED_LARGE:
        return Tiles(rows=64, positions=32 if wide > 128 else 64, num_warps=4, num_stages=2)
    if wide > 128:
        return Tiles(rows=128, positions=64, num_warps=8, num_stages=2)
    if wide == 128:
        return Tiles(rows=128, positions=128, num_warps=8, num_stages=2)
    return Tiles(rows=128, positions=64, num_warps=4, num_stages=4)


def _decode(wide: int, group: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    rows = min(padded(group), 64 if wide > 128 else 128)
    if dtype == torch.float32:
        return Tiles(rows=min(rows, 32), positions=32, num_warps=4, num_stages=2, programs=2)
    if capability[0] not in SHARED_LARGE or wide > 128:
        return Tiles(rows=min(rows, 64), positions=32, num_warps=4, num_stages=2, programs=2)
    if rows > 64 and wide <= 64 and capability[0] == HOPPER[0]:
        # 71 heads of one, D 64, on an H200, 2026-11-25: 17.0, 16.8, 40.0 and 37.8 us for 1 x 32768, 8 x 8192,
        # 64 x 4096 and 256 x 1024; with one program 13.6, 16.6, 44.7 and 45.3. At D 128 tiles take 128 KiB of
        # shared memory, so that one program fits, and 128 registers would spill 136 bytes a thread or more.
        return Tiles(rows=rows, positions=64, num_warps=8, num_stages=3, programs=2, registers=128)
    if rows > 64:
        return Tiles(rows=rows, positions=64, num_warps=8, num_stages=3, programs=1)
    # With more registers a third of the programs waits for the others: 342 us in place of 259 (64 x 4096).
    return Tiles(rows=rows, positions=64, num_warps=4, num_stages=2, programs=3, registers=168)
