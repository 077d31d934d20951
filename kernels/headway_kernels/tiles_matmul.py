"""Tile sizes of the matrix products, as `tiles` has them for the rest: pure functions, tuned beforehand.

Where no device is named the numbers are reasoned, not swept.
"""

from dataclasses import dataclass

import torch

from headway_kernels.tiles import SHARED_LARGE, padded


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
# (bytes of a weight, tokens): gemv is chosen from the one on and up to the other, by any line of the
# table. H100, 2026-11-25, the matrices of Llama-3.1-8B, of 32 MiB and more: with 1, 8 and 16 tokens 1.01 to
# 1.13 times as fast as cuBLAS. Smaller weights have not been compared.
WORTH_GEMV = ((32 << 20, 16),)


def worth_gemv(num_tokens: int, num_outputs: int, num_inputs: int, dtype: torch.dtype) -> bool:
    """Whether `gemv` is taken instead of cuBLAS: for few tokens, and a weight that takes time to read."""
    if num_tokens > (vector_tokens(dtype) if dtype == torch.float32 else GEMV_TOKENS):
        return False
    num_bytes = num_outputs * num_inputs * dtype.itemsize
    return any(num_bytes >= least and num_tokens <= most for least, most in WORTH_GEMV)


def vector_tokens(dtype: torch.dtype) -> int:
    """Tokens that the vector units are taken for. On an H100 the matrix units took 8 half-precision tokens in
    less time than the vector units 4, and any number up to 16 is the same to them; their float32 is slow.
    """
    return 4 if dtype == torch.float32 else 1


def gemv_tiles(num_tokens: int, num_outputs: int, dtype: torch.dtype) -> GemvTiles:
    """Tiles of 8 KiB, four loads of 16 bytes a thread, of fewer rows where there would be few programs. For
    products 8 or 16 KiB, stages ahead: every program fetches x anew, so more rows fetch it less often.
    """
    if num_tokens > vector_tokens(dtype):
        if dtype == torch.float32:
            return GemvTiles(outputs=32, inputs=32, num_stages=2, product=True)
        if num_outputs < 1 << 14:
            return GemvTiles(outputs=32, inputs=128, num_stages=6, product=True)
        return GemvTiles(outputs=64, inputs=128, num_stages=4, product=True)
    outputs = 4 if num_outputs >= 3072 else 2 if num_outputs >= 1024 else 1
    return GemvTiles(outputs=outputs, inputs=(8 << 10) // dtype.itemsize // outputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedTiles:
    """rows, columns: of a tile of results; depth: what a step of the sum takes in."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


GROUPED_PROGRAMS = 512  # that keep the memory of a Hopper GPU busy when each streams its share of the weights


def grouped_rows(num_pairs: int, num_experts: int, *, dtype: torch.dtype) -> int:
    """Rows of a block of one expert's pairs: half as many again as each expert has on average, so that most
    read their weights once. A layer's two products share them.
    """
    rows = min(padded(3 * num_pairs // (2 * num_experts)), 128)
    return min(rows, 32) if dtype == torch.float32 else rows


def grouped_tiles(
    *,
    num_blocks: int,
    rows: int,
    num_columns: int,
    unit: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> GroupedTiles:
    """Of a matrix product of blocks of rows, each with its own weights; `unit` divides the rows' lengths.

    Up to 32 rows the weights' way from memory takes the time: narrower tiles until there are enough programs,
    and deep steps. Odd lengths are read value by value, through registers.
    """
    large = capability[0] in SHARED_LARGE
    if dtype == torch.float32:
        return GroupedTiles(rows=rows, columns=32, depth=32, num_warps=4, num_stages=2)
    if unit == 1:
        return GroupedTiles(rows=rows, columns=64, depth=32, num_warps=4, num_stages=2)
    if rows <= 32:
        enough = (wide for wide in (128, 64) if num_blocks * -(-num_columns // wide) >= GROUPED_PROGRAMS)
        columns = next(enough, 32)
        if not large:
            return GroupedTiles(rows=rows, columns=min(columns, 64), depth=64, num_warps=4, num_stages=3)
        num_stages = {32: 5, 64: 4, 128: 3}[columns]
        return GroupedTiles(rows=rows, columns=columns, depth=128, num_warps=4, num_stages=num_stages)
    if not large:
        return GroupedTiles(rows=rows, columns=64, depth=32, num_warps=4, num_stages=3)
    return GroupedTiles(
        rows=rows,
        columns=128,
        depth=64,
        num_warps=8 if rows == 128 else 4,
        num_stages=3 if rows == 128 else 4,
    )
