"""The end of a paged decode: sequences that several programs had shares of, merged by log-sum-exp.

Which programs had a share, and where each left its result, follows from the plan (`decode_plan`): shares are
equal, and a program keeps its first sequence's result in its slot 0 and its last one's in slot 1. What lay in
one share is written already. Sequences without a context get their zeros here: no program had a tile of them.

Layout: parts [2 W, rows, D] with lse [2 W, rows] -> out [B * num_queries, Q, D]. Grid:
(B * num_queries, KV heads, heads of the largest group), so that no program searches for its KV head.

Shape suffixes: as in `reference`; K parts of a context, W programs.
"""

import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.decode_plan import DecodePlan, share
from headway_kernels.launch import FUSED
from headway_kernels.merge import merge_step
from headway_kernels.online_softmax import LN_2, LOWEST
from headway_kernels.tiles import padded


def merge_shares(
    plan: DecodePlan, out_BQD: Tensor, lse_BQ: Tensor | None, *, bounds: Tensor, sinks_Q: Tensor | None
) -> None:
    """Fill the rows of `out_BQD`, and of `lse_BQ`, that no program had the whole of.

    bounds: of the groups, on the device. The parts are counted with the sink, which is for empty contexts.
    """
    num_rows, _, head_dim = out_BQD.shape
    _merge_shares_kernel[(num_rows, plan.num_kv_heads, plan.group)](
        plan.parts,
        plan.lse,
        out_BQD,
        lse_BQ,
        plan.tile_starts,
        bounds,
        sinks_Q,
        len(plan.tile_starts) - 1,
        plan.num_kv_heads * plan.blocks,
        plan.num_programs,
        *out_BQD.stride()[:2],
        0 if lse_BQ is None else lse_BQ.stride(0),
        D=head_dim,
        WIDE=padded(head_dim),
        ROWS=plan.tile.rows,
        BLOCKS=plan.blocks,
        QUERIES=plan.num_queries,
        PARTS=16,
        HAS_SINKS=sinks_Q is not None,
        HAS_LSE=lse_BQ is not None,
        num_warps=2,
        **FUSED,
    )


@triton.jit(do_not_specialize=["num_seqs", "num_blocks", "num_programs"])
def _merge_shares_kernel(
    parts_ptr,
    parts_lse_ptr,
    out_ptr,
    lse_ptr,
    tile_starts_ptr,
    bounds_ptr,
    sinks_ptr,
    num_seqs,
    num_blocks,
    num_programs,
    out_row,
    out_head,
    lse_row,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    QUERIES: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """One token and query head; nothing to do where the sequence lies in one share."""
    token, kv_head, place = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = tl.load(bounds_ptr + kv_head) + place
    if head >= tl.load(bounds_ptr + kv_head + 1):  # a group smaller than the largest
        return
    row = token // QUERIES
    d_D = tl.arange(0, WIDE)
    total = tl.load(tile_starts_ptr + num_seqs)
    start = tl.load(tile_starts_ptr + row)
    num_tiles = tl.load(tile_starts_ptr + row + 1) - start
    out_ptr += token.to(tl.int64) * out_row + head * out_head
    if num_tiles == 0:
        tl.store(out_ptr + d_D, tl.zeros((WIDE,), out_ptr.dtype.element_ty), mask=d_D < D)
        if HAS_LSE:
            nothing = tl.load(sinks_ptr + head).to(tl.float32) if HAS_SINKS else float("-inf")
            tl.store(lse_ptr + token * lse_row + head, nothing)
        return
    within = place * QUERIES + token % QUERIES
    start += (kv_head * BLOCKS + within // ROWS) * total
    per = share(total * num_blocks, num_programs)
    first = start // per
    last = (start + num_tiles - 1) // per
    if first == last:
        return
    max_, sum_ = tl.full((), LOWEST, tl.float32), tl.full((), 0.0, tl.float32)
    acc_D = tl.zeros((WIDE,), tl.float32)
    for begin in range(first, last + 1, PARTS):
        worker_K = begin + tl.arange(0, PARTS)
        # A share that begins before the sequence has it as its last piece, else as its first.
        slot_K = 2 * worker_K + (worker_K * per < start).to(tl.int32)
        row_K = slot_K * ROWS + within % ROWS
        lse_K = tl.load(parts_lse_ptr + row_K, mask=worker_K <= last, other=float("-inf"))
        acc_D, sum_, max_ = merge_step(
            acc_D, sum_, max_, parts_ptr + row_K[:, None] * D + d_D, lse_K, d_D < D
        )
    seen = sum_ > 0.0
    if QUERIES > 1:  # one before its sequence's start has seen nothing
        sum_ = tl.where(seen, sum_, 1.0)
    tl.store(out_ptr + d_D, (acc_D / sum_).to(out_ptr.dtype.element_ty), mask=d_D < D)
    if HAS_LSE:
        lse = (max_ + tl.log2(sum_)) * LN_2
        tl.store(lse_ptr + token * lse_row + head, tl.where(seen, lse, float("-inf")) if QUERIES > 1 else lse)
