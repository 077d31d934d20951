"""How a step's paged decode is dealt to a persistent grid: planned once, on the device, for all layers.

The positions that a sequence's queries see are cut into tiles; laid out KV head by KV head and sequence by
sequence they make one list, and every program takes an equal share of it. So one context of 65,536 tokens
keeps all multiprocessors as busy as 64 contexts of 1,024. The grid depends on the device alone, and nothing
is read by the host: a captured graph replays with any lengths.

The plan is one int32 tensor: `first_row` [programs] says which sequence each program begins with, `finished`
[programs] counts how often a program's groups have told that their results are there (`hopper_merge`), and
`tile_starts` [B + 1] counts the tiles before each sequence. In this order where they lie does not depend on
the number of sequences: a kernel is compiled for what its pointers are multiples of.

A sequence without a context has a tile, too, in which nothing is seen: its results are zeros.

Shape suffixes: B sequences, W programs.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.launch import (
    DTYPES,
    FUSED,
    MOST_HEAD_DIM,
    MOST_INT32,
    MOST_QUERIES,
    capability,
    check_ints,
    check_window,
    num_multiprocessors,
    within_int32,
)
from headway_kernels.tiles import Tiles, padded, tiles

MOST_PROGRAMS = 1 << 14  # with whose parts the merge counts in 32 bits
PLANNED = 8  # programs of the grid that one program of the planner looks after


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodePlan:
    """parts, lse: where programs leave results of sequences that they share with others: [2 W, rows, D] and
    [2 W, rows] in float32; a program shares the first and the last of its sequences, at most. Launches that
    share a plan follow one another, on one stream: they share these places, and `finished` counts on from one
    to the next.
    """

    tile: Tiles
    dtype: torch.dtype
    window: int | None
    num_kv_heads: int
    group: int
    num_queries: int
    blocks: int  # of rows that a KV head's queries make
    num_programs: int
    tile_starts: Tensor
    first_row: Tensor
    finished: Tensor
    parts: Tensor
    lse: Tensor

    def check(
        self,
        *,
        num_seqs: int,
        num_kv_heads: int,
        group: int,
        num_queries: int,
        head_dim: int,
        window: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Raise ValueError unless the plan is for such a step."""
        for name, found, expected in (
            ("sequences", len(self.tile_starts) - 1, num_seqs),
            ("num_queries", self.num_queries, num_queries),
            ("head_dim", self.parts.shape[2], head_dim),
            ("window", self.window, window),
            ("num_kv_heads", self.num_kv_heads, num_kv_heads),
            ("group", self.group, group),
            ("dtype", self.dtype, dtype),
            ("device", self.parts.device, device),
        ):
            if found != expected:
                raise ValueError(f"paged_decode: plan must be for {name} = {expected}, got one for {found}")


def plan_decode(
    context_lens_B: Tensor,
    *,
    num_kv_heads: int,
    group: int,
    head_dim: int,
    dtype: torch.dtype,
    num_queries: int = 1,
    window: int | None = None,
    tile: Tiles | None = None,
    num_programs: int | None = None,
) -> DecodePlan:
    """The plan of `paged_decode` for all layers of a step that have these heads and this window.

    context_lens_B: int32, the newest token included; group: the most query heads that share a KV head.
    num_queries: the newest tokens of each sequence that are queries.
    Raises ValueError for lengths that are not dense int32, for numbers that no step has, for a tile whose
    rows are no power of two, and for more programs than run at once where they have to (by roles).
    """
    device = context_lens_B.device
    for name, number, most in (
        ("num_kv_heads", num_kv_heads, MOST_INT32),
        ("group", group, MOST_INT32),
        ("head_dim", head_dim, MOST_HEAD_DIM),
        ("num_queries", num_queries, MOST_QUERIES),
    ):
        if not 1 <= number <= most:
            raise ValueError(f"plan_decode: {name} must be from 1 to {most}, got {number}")
    if dtype not in DTYPES:
        raise ValueError(f"plan_decode: dtype must be a 16- or 32-bit float, got {dtype}")
    check_window("plan_decode", window)
    check_ints("plan_decode", "context_lens", context_lens_B, len(context_lens_B), device)
    tile = tile or tiles(
        "paged_decode",
        head_dim=head_dim,
        group=group * num_queries,
        dtype=dtype,
        capability=capability(device),
    )
    if tile.rows & (tile.rows - 1):
        raise ValueError(f"plan_decode: tile must have a power of two of rows, got {tile.rows}")
    num_seqs = len(context_lens_B)
    at_once = num_multiprocessors(device) * tile.programs
    num_programs = at_once if num_programs is None else num_programs
    most = at_once if tile.groups else MOST_PROGRAMS  # by roles they wait for each other
    if not 1 <= num_programs <= most:
        raise ValueError(f"plan_decode: num_programs must be from 1 to {most}, got {num_programs}")
    blocks = -(-group * num_queries // tile.rows)
    made = torch.empty(2 * num_programs + num_seqs + 1, dtype=torch.int32, device=device)
    plan = DecodePlan(
        tile=tile,
        dtype=dtype,
        window=window,
        num_kv_heads=num_kv_heads,
        group=group,
        num_queries=num_queries,
        blocks=blocks,
        num_programs=num_programs,
        tile_starts=made[2 * num_programs :],
        first_row=made[:num_programs],
        finished=made[num_programs : 2 * num_programs],
        parts=torch.empty(2 * num_programs, tile.rows, head_dim, dtype=torch.float32, device=device),
        lse=torch.empty(2 * num_programs, tile.rows, dtype=torch.float32, device=device),
    )
    _plan_kernel[(triton.cdiv(num_programs, PLANNED),)](
        context_lens_B,
        plan.tile_starts,
        plan.first_row,
        plan.finished,
        num_seqs,
        num_kv_heads * blocks,
        num_programs,
        (within_int32(window) or 1) + num_queries - 1,  # what any query sees, where there is a window
        SEQS=padded(num_seqs + 1),
        POSITIONS=tile.positions,
        HAS_WINDOW=window is not None,
        WORKERS=PLANNED,
        num_warps=4,
        **FUSED,
    )
    return plan


@triton.jit(do_not_specialize=["num_seqs", "num_blocks", "num_programs", "window"])
def _plan_kernel(
    context_lens_ptr,
    tile_starts_ptr,
    first_row_ptr,
    finished_ptr,
    num_seqs,
    num_blocks,
    num_programs,
    window,
    SEQS: tl.constexpr,
    POSITIONS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    WORKERS: tl.constexpr,
):
    """Every program counts all tiles anew: that is cheaper than waiting for one that would."""
    row_B = tl.arange(0, SEQS)
    real_B = row_B < num_seqs
    context_len_B = tl.load(context_lens_ptr + row_B, mask=real_B, other=0)
    num_tiles_B = tl.cdiv(tl.maximum(context_len_B, 1), POSITIONS)
    if HAS_WINDOW:
        num_tiles_B -= tl.maximum(context_len_B - window, 0) // POSITIONS
    num_tiles_B = tl.where(real_B, num_tiles_B, 0)
    end_B = tl.cumsum(num_tiles_B, 0)
    total = tl.sum(num_tiles_B, 0)
    if tl.program_id(0) == 0:
        tl.store(tile_starts_ptr + row_B, end_B - num_tiles_B, mask=row_B <= num_seqs)
    worker_W = tl.program_id(0) * WORKERS + tl.arange(0, WORKERS)
    first_W = worker_W * share(total * num_blocks, num_programs) % tl.maximum(total, 1)
    row_W = tl.sum((real_B[None] & (end_B[None] <= first_W[:, None])).to(tl.int32), 1)
    tl.store(first_row_ptr + worker_W, row_W, mask=worker_W < num_programs)
    tl.store(finished_ptr + worker_W, worker_W * 0, mask=worker_W < num_programs)


@triton.jit
def share(num_tiles, num_programs):
    """Tiles that each program takes: the last ones may find fewer, or none."""
    return tl.cdiv(num_tiles, num_programs)
