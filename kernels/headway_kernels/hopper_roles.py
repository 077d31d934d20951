"""What a program of the kernels for Hopper is: warps with roles of their own, and the memory that they share.

Two warps, the producers, fetch tiles of positions with the copy engine (TMA), one K and one V, a few ahead
(`hopper_fetch`); one to three groups of four warps, the consumers, multiply, 64 rows each, and nothing ties
one group to the other but the tiles they share (`hopper_multiply`). One warp more, the scheduler, finds out
what there is to do (`hopper_work`).

    fetching warps          K0  V0  K1  V1  K2 ...
    multiplying groups          qK0  softmax0  qK1 pV0  softmax1  qK2 pV1 ...

Written in Gluon, Triton's language for explicit layouts and barriers: plain Triton has no word for roles.

Source: FlashAttention-3 (arXiv 2407.08608, sections 3.1 and 3.2).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from headway_kernels.hopper_fetch import fetch, interleaved, whole
from headway_kernels.hopper_multiply import multiply
from headway_kernels.hopper_work import FIELDS, GROUP_ROWS, NOTES, Board, Ring, write_notes
from headway_kernels.tiles import Tiles

WARPS = 4  # of a group; the warps with the other roles are as many, one of them idle
REGISTERS = 65_536  # of a multiprocessor
FETCHING = {1: 40, 2: 40, 3: 32}  # of a thread that does not multiply, by groups: with 32 it spills a few


def registers_of(tile: Tiles) -> tuple[int | None, int, int]:
    """(of a thread when a program begins, of one that multiplies, of the others), so that all its programs
    fit in a multiprocessor. None: whatever one program leaves.
    """
    threads = 32 * WARPS
    all_of_program = REGISTERS // tile.programs
    begin = all_of_program // (threads * (tile.groups + 1)) // 8 * 8
    multiplying = (all_of_program - threads * FETCHING[tile.groups]) // (threads * tile.groups) // 8 * 8
    return begin if tile.programs > 1 else None, min(multiplying, 240), FETCHING[tile.groups]


@gluon.jit
def run_roles(
    facts,
    pages,
    k_box,
    v_box,
    tensors,
    scoring,
    PAGE: gl.constexpr,
    D: gl.constexpr,
    WIDE: gl.constexpr,
    POSITIONS: gl.constexpr,
    STAGES: gl.constexpr,
    GROUPS: gl.constexpr,
    VARIANT: gl.constexpr,
    REGISTERS: gl.constexpr,
    FETCH_REGISTERS: gl.constexpr,
):
    """All of a program. facts: what the scheduler's notes are of; REGISTERS: of a multiplying thread, but
    for the first group, which takes what is left.
    """
    ROWS: gl.constexpr = GROUPS * GROUP_ROWS
    dtype: gl.constexpr = tensors.q.dtype.element_ty
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    q_smem = gl.allocate_shared_memory(dtype, [GROUPS, GROUP_ROWS, WIDE], layout)
    notes = gl.allocate_shared_memory(
        gl.int32, [(NOTES + 1) * FIELDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0])
    )
    tile_layout: gl.constexpr = interleaved(POSITIONS, WIDE) if whole(k_box) else layout
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, POSITIONS, WIDE], tile_layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, POSITIONS, WIDE], tile_layout)
    k_full, k_empty = _barriers(STAGES, GROUPS)
    v_full, v_empty = _barriers(STAGES, GROUPS)
    note_full, note_empty = _barriers(NOTES, GROUPS + 2)
    landed, _ = _barriers(1, 1)
    fence_async_shared()

    board = Board(notes, note_full, note_empty)
    keys = Ring(k_smem, k_full, k_empty)
    values = Ring(v_smem, v_full, v_empty)
    if GROUPS == 1:
        gl.warp_specialize(
            [
                (multiply, (0, board, q_smem, keys, values, tensors, scoring, D, VARIANT)),
                (write_notes, (facts, board, ROWS, POSITIONS, VARIANT)),
                (fetch, (board, k_box, keys, pages, landed, False, PAGE)),
                (fetch, (board, v_box, values, pages, landed, True, PAGE)),
            ],
            [1, 1, 1],
            [FETCH_REGISTERS, FETCH_REGISTERS, FETCH_REGISTERS],
        )
    elif GROUPS == 2:
        gl.warp_specialize(
            [
                (multiply, (0, board, q_smem, keys, values, tensors, scoring, D, VARIANT)),
                (multiply, (1, board, q_smem, keys, values, tensors, scoring, D, VARIANT)),
                (write_notes, (facts, board, ROWS, POSITIONS, VARIANT)),
                (fetch, (board, k_box, keys, pages, landed, False, PAGE)),
                (fetch, (board, v_box, values, pages, landed, True, PAGE)),
            ],
            [4, 1, 1, 1],
            [REGISTERS, FETCH_REGISTERS, FETCH_REGISTERS, FETCH_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (multiply, (0, board, q_smem, keys, values, tensors, scoring, D, VARIANT)),
                (multiply, (1, board, q_smem, keys, values, tensors, scoring, D, VARIANT)),
                (multiply, (2, board, q_smem, keys, values, tensors, scoring, D, VARIANT)),
                (write_notes, (facts, board, ROWS, POSITIONS, VARIANT)),
                (fetch, (board, k_box, keys, pages, landed, False, PAGE)),
                (fetch, (board, v_box, values, pages, landed, True, PAGE)),
            ],
            [4, 4, 1, 1, 1],
            [REGISTERS, REGISTERS, FETCH_REGISTERS, FETCH_REGISTERS, FETCH_REGISTERS],
        )


@gluon.jit
def _barriers(STAGES: gl.constexpr, GROUPS: gl.constexpr):
    """(full, empty) of so many stages: a tile has landed; every group is done with it."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=GROUPS)
    return full, empty
