"""`paged_decode` on Hopper, in half precision: warps with roles of their own (`hopper_roles`).

In the plain kernel each warp gathers K and V by pointers of its own, and its products wait for them. Here the
copy engine fetches whole pages, several tiles ahead, so that a multiprocessor always has some 100 to 200 KB
on their way, and the queries of many heads take the warp groups' products.

A tile has 64 rows where a KV head's queries fit in them, most of them empty: memory is what decoding waits
for, and up to D 128 two programs a multiprocessor hide one's softmax behind the other's fetching.

Shares, pieces, rows and parts are those of `paged_decode` (`decode_tiles`), and so is the layout. Parts are
merged in the same launch (`hopper_merge`), so programs wait for each other, and the launch is cooperative.
Grid: the plan's programs.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from headway_kernels.decode_call import DecodeCall
from headway_kernels.decode_tiles import Step
from headway_kernels.hopper_boxes import boxes
from headway_kernels.hopper_fetch import BOX_VALUES
from headway_kernels.hopper_multiply import Scoring, Tensors
from headway_kernels.hopper_roles import registers_of, run_roles
from headway_kernels.launch import FUSED
from headway_kernels.tiles import padded


def launch(call: DecodeCall) -> None:
    """Run the kernel, by its plan's tile, for pools that `hopper_boxes` `takes`."""
    tile, page_size, head_dim = call.plan.tile, *call.k_pool.shape[2:]
    at_first, multiplying, fetching = registers_of(tile)
    _hopper_decode_kernel[(call.plan.num_programs,)](
        *call.arguments(),
        call.plan.finished,
        *boxes(call.k_pool, call.v_pool, tile.positions, paged=True),
        PAGE=page_size,
        D=head_dim,
        WIDE=max(padded(head_dim), BOX_VALUES.value),
        POSITIONS=tile.positions,
        STAGES=tile.num_stages,
        GROUPS=tile.groups,
        VARIANT=call.variant,
        REGISTERS=multiplying,
        FETCH_REGISTERS=fetching,
        maxnreg=at_first,
        num_warps=4,
        launch_cooperative_grid=True,
        **FUSED,
    )


@gluon.jit(do_not_specialize=["num_seqs", "num_kv_heads", "num_blocks", "num_queries", "window", "table_row"])
def _hopper_decode_kernel(
    q_ptr,
    out_ptr,
    lse_ptr,
    parts_ptr,
    parts_lse_ptr,
    table_ptr,
    context_lens_ptr,
    tile_starts_ptr,
    first_row_ptr,
    bounds_ptr,
    sinks_ptr,
    slopes_ptr,
    num_seqs,
    num_kv_heads,
    num_blocks,
    num_queries,
    scale,
    window,
    softcap,
    q_row,
    q_head,
    out_row,
    out_head,
    table_row,
    lse_row,
    finished_ptr,
    k_box,
    v_box,
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
    step = Step(
        tile_starts_ptr,
        first_row_ptr,
        context_lens_ptr,
        bounds_ptr,
        num_seqs,
        num_kv_heads,
        num_blocks,
        num_queries,
        window,
    )
    pages = (table_ptr, table_row, num_kv_heads * PAGE)
    tensors = Tensors(
        q_ptr,
        q_row,
        q_head,
        out_ptr,
        out_row,
        out_head,
        lse_ptr,
        lse_row,
        parts_ptr,
        parts_lse_ptr,
        finished_ptr,
        GROUPS,
        sinks_ptr,
        slopes_ptr,
    )
    run_roles(
        step,
        pages,
        k_box,
        v_box,
        tensors,
        Scoring(scale, window, softcap),
        PAGE,
        D,
        WIDE,
        POSITIONS,
        STAGES,
        GROUPS,
        VARIANT,
        REGISTERS,
        FETCH_REGISTERS,
    )
