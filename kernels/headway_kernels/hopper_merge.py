"""The end of a program of `hopper_decode`: parts of a result merged by log-sum-exp, in the same launch.

A program that has left its parts says so in a count. Those that began with a part of the same result wait
for all who have one, and share its rows out: parts are read by as many programs as wrote them, or one fewer.
All programs end at about the same time, so the wait is short. Since they wait for each other they must all
be at work at once: a cooperative launch sees to that, or fails.

A kernel of its own (`merge_shares`, which other devices have) is launched, and looks up anew what a program
here knows: with 71 queries of a KV head and 3 stages 64 x 4096 took 35.2 us with it and takes 31.3, 1 x 32768
15.1 and 14.1 (H200, 2026-11-25).

What runs once a launch is as slow as the fetching of its code, while K and V stream past it: two sizes of
tile, in one group, and with one query no division a row. With three sizes, in both groups, the kernel had
207 KB of code in place of 129, and the merge gained nothing at 64 x 4096.

Shape suffixes: K parts, H rows that are merged at once, D values of a head.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from headway_kernels import decode_tiles, online_softmax
from headway_kernels.hopper_work import GROUP_ROWS, token_of
from headway_kernels.online_softmax import LN_2

VALUES = gl.constexpr(8192)  # read at once, by 128 threads: 64 each

# Triton 3.6 has another name for it.
thread_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier

slot_of = gluon.jit(decode_tiles.slot_of.fn)
first_step = gluon.jit(online_softmax.first_step.fn)
last_step = gluon.jit(online_softmax.last_step.fn)


@gluon.jit
def launches_before(tensors):
    """Launches of the plan that the program has finished. Other groups may have told of this one already; the
    one that reads has not, so the quotient is right.
    """
    return gl.load(tensors.finished + gl.program_id(0)) // tensors.num_groups


@gluon.jit
def tell(tensors):
    """The group's parts are there."""
    thread_barrier()  # all threads have written theirs
    gl.atomic_add(tensors.finished + gl.program_id(0), 1, sem="release")


@gluon.jit
def merge_parts(work, num_launches, tensors, WIDE: gl.constexpr, D: gl.constexpr, VARIANT: gl.constexpr):
    """Merge the program's rows of `work`, with which it began, as soon as all parts of that are there."""
    _wait((num_launches + 1) * tensors.num_groups, work, tensors)
    part_rows: gl.constexpr = tensors.num_groups * GROUP_ROWS
    num_rows = gl.minimum(work.num_queries * work.group - work.first_row, part_rows)
    each = gl.cdiv(num_rows, work.num_mergers)
    first = (gl.program_id(0) - work.first_program - work.num_parts + work.num_mergers) * each
    last = gl.minimum(first + each, num_rows)
    FEW: gl.constexpr = 2
    MANY: gl.constexpr = min(VALUES // WIDE, 64)
    if _turns(work.num_parts, each, FEW, WIDE) <= _turns(work.num_parts, each, MANY, WIDE):
        _merge_rows(first, last, work, tensors, FEW, WIDE, D, VARIANT)
    else:
        _merge_rows(first, last, work, tensors, MANY, WIDE, D, VARIANT)


@gluon.jit
def _turns(num_parts, num_rows, PARTS: gl.constexpr, WIDE: gl.constexpr):
    """Rounds of loads for so many rows of so many parts, PARTS parts at a time."""
    return gl.cdiv(num_parts, PARTS) * gl.cdiv(num_rows, VALUES // (PARTS * WIDE))


@gluon.jit
def _wait(count, work, tensors):
    """Until all programs with a part have told as often, a thread for each. The maximum over all threads
    takes a barrier, so what one has acquired all may read.
    """
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    for begin in range(0, work.num_parts, 128):
        part_K = begin + gl.arange(0, 128, layout=layout)
        there_K = part_K < work.num_parts
        behind = 1
        while behind > 0:
            ptr_K = tensors.finished + work.first_program + part_K
            # Adds nothing: a load has no memory order here.
            found_K = gl.atomic_add(ptr_K, part_K * 0, mask=there_K, sem="acquire")
            behind = gl.max(gl.where(there_K, count - found_K, 0), 0)


@gluon.jit
def _merge_rows(
    first,
    last,
    work,
    tensors,
    PARTS: gl.constexpr,
    WIDE: gl.constexpr,
    D: gl.constexpr,
    VARIANT: gl.constexpr,
):
    """Rows [first, last) of a block, PARTS parts at a time."""
    part_rows: gl.constexpr = tensors.num_groups * GROUP_ROWS
    ROWS: gl.constexpr = VALUES // (PARTS * WIDE)
    BY_ROW: gl.constexpr = min(
        ROWS, 4
    )  # warps along rows; the others lie along values, so that no sum crosses a warp
    LANES: gl.constexpr = min(WIDE // (4 // BY_ROW * 4), 32)
    MORE: gl.constexpr = min(32 // LANES, ROWS // BY_ROW)  # rows of a warp
    layout: gl.constexpr = gl.BlockedLayout(
        [1, 1, 4], [32 // LANES // MORE, MORE, LANES], [1, BY_ROW, 4 // BY_ROW], [2, 1, 0]
    )
    by_value: gl.constexpr = gl.SliceLayout(0, layout)
    by_row: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, layout))
    part_K = gl.arange(0, PARTS, layout=gl.SliceLayout(1, gl.SliceLayout(2, layout)))
    d_1D = gl.arange(0, WIDE, layout=gl.SliceLayout(0, by_value))[None, :]

    for begin in range(first, last, ROWS):
        row_H = begin + gl.arange(0, ROWS, layout=by_row)
        _, head_H = token_of(work.first_row + row_H, work.group, VARIANT.single)
        # No part has counted the sink.
        max_H, sum_H = first_step(
            tensors.sinks + work.first_head + head_H if VARIANT.sinks else None, row_H < last, VARIANT.sinks
        )
        acc_HD = gl.full([ROWS, WIDE], 0.0, gl.float32, by_value)
        for done in range(0, work.num_parts, PARTS):
            slot_K = slot_of(work.first_program, done + part_K)
            there_KH = (done + part_K < work.num_parts)[:, None] & (row_H < last)[None]
            row_KH = (slot_K * part_rows)[:, None] + row_H[None]
            lse_KH = gl.load(tensors.parts_lse + row_KH, mask=there_KH, other=float("-inf"))
            there_KHD = there_KH[:, :, None] & (d_1D < D)[None, :, :]
            part_ptr_KHD = tensors.parts + (row_KH * D)[:, :, None] + d_1D[None, :, :]
            part_KHD = gl.load(part_ptr_KHD, mask=there_KHD, other=0.0)
            # `merge.weigh`, whose shapes Gluon does not broadcast.
            new_max_H = gl.maximum(max_H, gl.max(lse_KH, 0))
            weight_KH = gl.exp2(lse_KH - new_max_H[None])
            keep_H = gl.exp2(max_H - new_max_H)
            sum_H, max_H = sum_H * keep_H + gl.sum(weight_KH, 0), new_max_H
            keep_H1 = gl.convert_layout(keep_H, gl.SliceLayout(1, by_value))[:, None]
            acc_HD = acc_HD * keep_H1 + gl.sum(part_KHD * weight_KH[:, :, None], 0)
        sum_H = gl.convert_layout(sum_H, gl.SliceLayout(1, by_value))
        max_H = gl.convert_layout(max_H, gl.SliceLayout(1, by_value))
        row_H = gl.convert_layout(row_H, gl.SliceLayout(1, by_value))
        out_HD, lse_H = last_step(acc_HD, sum_H, max_H)
        token_H, head_H = token_of(work.first_row + row_H, work.group, VARIANT.single)
        token_H = (work.start + token_H).to(gl.int64)
        head_H += work.first_head
        out_H = tensors.out + token_H * tensors.out_token + head_H * tensors.out_head
        real_HD = (row_H < last)[:, None] & (d_1D < D)
        gl.store(out_H[:, None] + d_1D, out_HD.to(tensors.out.dtype.element_ty), mask=real_HD)
        if VARIANT.lse:
            gl.store(tensors.lse + token_H * tensors.lse_token + head_H, lse_H * LN_2, mask=row_H < last)
