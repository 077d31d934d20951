"""Tile sizes and launch parameters: one pure function of operation, shape, dtype and compute capability.

Where a device is named, numbers come from sweeps there; else they are reasoned. Nothing is tuned at run time.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Op = Literal["flash_prefill", "paged_decode"]
HOPPER = (9, 0)
MERGED = 32  # parts that a program of `merge_shares` reads at a time, of all its rows
SHARED_LARGE = (9, 10)  # major capabilities of devices with 227 KiB of shared memory a multiprocessor


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """rows, positions: of a tile of scores; groups: of warps that only multiply (`hopper_roles`), 0 where
    all warps do everything; programs: of a persistent grid, a multiprocessor.
    """

    rows: int
    positions: int
    num_warps: int
    num_stages: int
    groups: int = 0
    programs: int = 1

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
    if op == "paged_decode":
        return _decode(head_dim, group, dtype, capability)
    return _prefill(head_dim, dtype, capability)


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


def merge_rows(num_rows: int, num_parts: int) -> int:
    """Rows of a block that a program of `merge_shares` takes: as many as its parts leave room for."""
    return max(min(padded(num_rows, 1), 8, MERGED // padded(num_parts, 1)), 1)


def padded(size: int, least: int = 16) -> int:
    """The power of two that a tile of `size` takes up; a matrix product takes no less than `least`."""
    return max(least, 1 << (size - 1).bit_length())


def _prefill(head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    """Heads that are no multiple of 16 values, which Triton compiles for, come value by value, through
    registers: of a tile as large as the others' a thread at D 72 keeps 1.5 KB on the stack, of these nothing.
    """
    wide = padded(head_dim)
    if dtype == torch.float32:
        return Tiles(rows=32, positions=32, num_warps=4, num_stages=1 if wide > 128 else 2)
    if head_dim % 16:
        positions = 16 if wide > 128 else 32
        return Tiles(rows=2 * positions, positions=positions, num_warps=8, num_stages=2)
    if capability[0] not in SHARED_LARGE:
        return Tiles(rows=64, positions=32 if wide > 128 else 64, num_warps=4, num_stages=2)
    if wide > 128:
        return Tiles(rows=128, positions=64, num_warps=8, num_stages=2)
    if wide == 128:
        return Tiles(rows=128, positions=128, num_warps=8, num_stages=2)
    return Tiles(rows=128, positions=64, num_warps=4, num_stages=4)


def _decode(head_dim: int, group: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    wide = padded(head_dim)
    if capability[0] == HOPPER[0] and dtype != torch.float32:
        return _decode_by_roles(wide, group)
    rows = min(padded(group), 64 if wide > 128 else 128)
    if dtype == torch.float32:
        return Tiles(rows=min(rows, 32), positions=32, num_warps=4, num_stages=2, programs=2)
    if capability[0] not in SHARED_LARGE or wide > 128 or head_dim % 16:  # through registers: `_prefill`
        return Tiles(rows=min(rows, 64), positions=32, num_warps=4, num_stages=2, programs=2)
    if rows > 64:
        return Tiles(rows=rows, positions=64, num_warps=8, num_stages=3, programs=1)
    return Tiles(rows=rows, positions=64, num_warps=4, num_stages=2, programs=2)


def _decode_by_roles(wide: int, group: int) -> Tiles:
    """Of `hopper_decode`. On an H200, 2026-11-25, 32/8 heads, D 128, 32 x 4096: tiles of 64 positions in two
    programs of 2 stages 137 us, of 3 stages 139, of 32 positions and 6 stages 142; one program 148 to 151,
    all with the merge as a kernel of its own. 71 heads of one, D 64, 64 x 4096: two groups, 128 positions,
    2 or 3 stages within 1% of each other (which is ahead differs by batch and run); more stages or programs
    were slower (kernels/README.md). Of D above 128 nothing has been measured.
    """
    if wide > 128:
        return Tiles(rows=64, positions=64, num_warps=4, num_stages=3, groups=1)
    positions = 128 if wide <= 64 else 64
    if group <= 64:
        return Tiles(rows=64, positions=positions, num_warps=4, num_stages=2, groups=1, programs=2)
    return Tiles(rows=128, positions=128, num_warps=4, num_stages=2, groups=2)
