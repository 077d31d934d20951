"""`flash_prefill` on Hopper, in half precision: warps with roles of their own.

In the plain kernel all warps do everything in turn, and the matrix units wait for them. Here two warps, the
producers, fetch tiles of positions with the copy engine (TMA), one K and one V, a few ahead (`hopper_fetch`);
two or three groups of four warps, the consumers, multiply, 64 rows each, and nothing ties one group to the
other but the tiles they share (`hopper_multiply`). One warp more, the scheduler, finds out what there is to
do (`hopper_work`).

    fetching warps          K0  V0  K1  V1  K2 ...
    multiplying groups          qK0  softmax0  qK1 pV0  softmax1  qK2 pV1 ...

A program takes one tile of rows after another until all are done, and fetches for the next one while the
groups still write the last one's result. Measured on an H200, bfloat16, 8192 causal tokens, 32/8 heads: 665
TFLOP/s at D 128 and 497 at D 64, where warps without roles gave 520 and 418.

Written in Gluon, Triton's language for explicit layouts and barriers: plain Triton has no word for roles.
Rows, tiles and masks are those of `flash_prefill` (`prefill_tiles`), and so is the layout. Grid: a program
for each multiprocessor.

Source: FlashAttention-3 (arXiv 2407.08608, sections 3.1 and 3.2).
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from headway_kernels.hopper_fetch import BOX_VALUES, fetch
from headway_kernels.hopper_multiply import GROUP_ROWS, Scoring, Tensors, multiply
from headway_kernels.hopper_work import FIELDS, NOTES, Board, Lengths, Ring, write_notes
from headway_kernels.launch import FUSED, capability, num_multiprocessors
from headway_kernels.prefill_call import PrefillCall
from headway_kernels.tiles import HOPPER, Tiles, padded

DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
REGISTERS = {2: 240, 3: 160}  # of a multiplying thread, by groups: what the fetching warps' leave
FETCH_REGISTERS = 32


def takes(call: PrefillCall) -> bool:
    """Whether this kernel does it: on Hopper, in half precision, not in Triton's interpreter, which has no
    Gluon. The copy engine takes rows that begin at multiples of 16 bytes, and positions by 16 at least.
    """
    rows, paged = (call.k, call.v), call.context_lens is not None
    places = [one.data_ptr() for one in rows]
    places += [stride * one.itemsize for one in rows for stride in one.stride()[:-1]]
    return (
        capability(call.q.device)[0] == HOPPER[0]
        and not triton.knobs.runtime.interpret
        and call.q.dtype in DTYPES
        and call.k.numel() > 0
        and (not paged or (call.k.shape[2] % 16 == 0 and all(one.is_contiguous() for one in rows)))
        and all(place % 16 == 0 for place in places)
    )


def launch(call: PrefillCall, tile: Tiles) -> None:
    """Run the kernel for a call that it `takes`."""
    head_dim, page_size = call.q.shape[2], call.k.shape[2]
    # A box takes the positions that lie in a row wherever a tile begins, and 128 bytes of each.
    block = [min(tile.positions, page_size & -page_size), BOX_VALUES.value]
    if call.context_lens is None:
        k, v = (rows[:, :, 0].transpose(0, 1) for rows in (call.k, call.v))
        block = [1, tile.positions, BOX_VALUES.value]
    else:
        k, v = (pool.view(-1, head_dim) for pool in (call.k, call.v))
    layout = gl.NVMMASharedLayout.get_default_for(block, DTYPES[call.q.dtype])
    num_kv_heads, num_tiles = call.num_tiles(tile.rows)
    _hopper_prefill_kernel[(min(num_multiprocessors(call.q.device), num_kv_heads * num_tiles),)](
        *call.arguments(),
        TensorDescriptor.from_tensor(k, block, layout),
        TensorDescriptor.from_tensor(v, block, layout),
        num_kv_heads,
        num_tiles,
        PAGE=0 if call.context_lens is None else page_size,
        D=head_dim,
        WIDE=max(padded(head_dim), BOX_VALUES.value),
        POSITIONS=tile.positions,
        STAGES=tile.num_stages,
        GROUPS=tile.groups,
        VARIANT=call.variant,
        REGISTERS=REGISTERS[tile.groups],
        FETCH_REGISTERS=FETCH_REGISTERS,
        num_warps=4,
        **FUSED,
    )


@gluon.jit(do_not_specialize=["num_seqs", "window", "table_row", "lse_token", "num_tiles"])
def _hopper_prefill_kernel(
    q_ptr,
    out_ptr,
    lse_ptr,
    table_ptr,
    query_starts_ptr,
    context_lens_ptr,
    bounds_ptr,
    sinks_ptr,
    slopes_ptr,
    num_seqs,
    scale,
    window,
    softcap,
    q_token,
    q_head,
    out_token,
    out_head,
    table_row,
    lse_token,
    k_box,
    v_box,
    num_kv_heads,
    num_tiles,
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
    ROWS: gl.constexpr = GROUPS * GROUP_ROWS
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    q_smem = gl.allocate_shared_memory(dtype, [GROUPS, GROUP_ROWS, WIDE], layout)
    notes = gl.allocate_shared_memory(gl.int32, [NOTES * FIELDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, POSITIONS, WIDE], layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, POSITIONS, WIDE], layout)
    k_full, k_empty = _barriers(STAGES, GROUPS)
    v_full, v_empty = _barriers(STAGES, GROUPS)
    note_full, note_empty = _barriers(NOTES, GROUPS + 2)
    landed, _ = _barriers(1, 1)
    fence_async_shared()

    lengths = Lengths(
        query_starts_ptr,
        table_ptr,
        context_lens_ptr,
        bounds_ptr,
        num_seqs,
        window,
        num_kv_heads,
        num_tiles,
    )
    pages = (table_ptr, table_row, num_kv_heads * PAGE)
    board = Board(notes, note_full, note_empty)
    keys = Ring(k_smem, k_full, k_empty)
    values = Ring(v_smem, v_full, v_empty)
    tensors = Tensors(
        q_ptr, q_token, q_head, out_ptr, out_token, out_head, lse_ptr, lse_token, sinks_ptr, slopes_ptr
    )
    scoring = Scoring(scale, window, softcap)
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (multiply, (0, board, q_smem, keys, values, tensors, scoring, D, VARIANT)),
                (multiply, (1, board, q_smem, keys, values, tensors, scoring, D, VARIANT)),
                (write_notes, (lengths, board, ROWS, POSITIONS, VARIANT)),
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
                (write_notes, (lengths, board, ROWS, POSITIONS, VARIANT)),
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
