"""The end of a program of `hopper_decode`: sequences cut into parts, merged by log-sum-exp in the same launch.

A program that has left its parts says so, by a count of launches. One that began with the rest of a sequence
waits for all who had a part of that one, and merges as many of its rows as the others: the parts are read by
as many multiprocessors as wrote them. All programs end at about the same time, so the wait is short. They
wait for each other, so they must all be at work at once: a cooperative launch sees to that, or fails.

Against a kernel of its own this saves a launch, and what that must look up anew (`merge_shares`, which other
devices have).

Shape suffixes: K parts, H rows that are merged at once, D values of a head.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from headway_kernels import decode_tiles, online_softmax
from headway_kernels.hopper_work import GROUP_ROWS
from headway_kernels.online_softmax import LN_2

VALUES = gl.constexpr(8192)  # read at once: 64 a thread

# Triton 3.6 has another name for it.
thread_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier

slot_of = gluon.jit(decode_tiles.slot_of.fn)
first_step = gluon.jit(online_softmax.first_step.fn)
last_step = gluon.jit(online_softmax.last_step.fn)


@gluon.jit
def merge_parts(GROUP: gl.constexpr, work, tensors, WIDE: gl.constexpr, D: gl.constexpr, VARIANT: gl.constexpr):
    """Tell that the group's parts are there, and merge its rows of `work`, if that has parts."""
    thread_barrier()  # all threads have written theirs
    place = gl.program_id(0) * tensors.num_groups + GROUP
    launch = gl.atomic_add(tensors.finished + place, 1, sem="release") + 1
    if work.num_parts > 1:
        _wait(GROUP, launch, work, tensors)
        if work.num_parts <= 4:
            _merge_rows(GROUP, work, tensors, 4, WIDE, D, VARIANT)
        elif work.num_parts <= 16:
            _merge_rows(GROUP, work, tensors, 16, WIDE, D, VARIANT)
        else:
            _merge_rows(GROUP, work, tensors, 64, WIDE, D, VARIANT)


@gluon.jit
def _wait(GROUP: gl.constexpr, launch, work, tensors):
    """Until all programs with a part have finished as many launches."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    for begin in range(0, work.num_parts, 128):
        part_K = begin + gl.arange(0, 128, layout=layout)
        ptr_K = tensors.finished + (work.first_program + part_K) * tensors.num_groups + GROUP
        behind = 1
        while behind > 0:
            found_K = gl.atomic_add(ptr_K, part_K * 0, mask=part_K < work.num_parts, sem="acquire")
            behind = gl.max(gl.where(part_K < work.num_parts, launch - found_K, 0), 0)


@gluon.jit
def _merge_rows(
    GROUP: gl.constexpr,
    work,
    tensors,
    PARTS: gl.constexpr,
    WIDE: gl.constexpr,
    D: gl.constexpr,
    VARIANT: gl.constexpr,
):
    """The program's rows, PARTS parts at a time."""
    ROWS: gl.constexpr = max(VALUES // (PARTS * WIDE), 1)
    BY_ROW: gl.constexpr = min(ROWS, 4)  # warps; the others take values, so that none has to meet another
    LANES: gl.constexpr = min(WIDE // (4 // BY_ROW * 4), 32)
    layout: gl.constexpr = gl.BlockedLayout([1, 1, 4], [32 // LANES, 1, LANES], [1, BY_ROW, 4 // BY_ROW], [2, 1, 0])
    by_row: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, layout))
    by_value: gl.constexpr = gl.SliceLayout(0, layout)
    part_K = gl.arange(0, PARTS, layout=gl.SliceLayout(1, gl.SliceLayout(2, layout)))
    d_1D = gl.arange(0, WIDE, layout=gl.SliceLayout(0, by_value))[None, :]

    num_rows = gl.minimum(work.num_queries * work.group - work.first_row - GROUP * GROUP_ROWS, GROUP_ROWS)
    each = gl.cdiv(gl.maximum(num_rows, 0), work.num_parts - 1)
    first = (gl.program_id(0) - work.first_program - 1) * each
    for begin in range(first, gl.minimum(first + each, num_rows), ROWS):
        row_H = begin + gl.arange(0, ROWS, layout=by_row)
        real_H = row_H < gl.minimum(first + each, num_rows)
        block_row_H = work.first_row + GROUP * GROUP_ROWS + row_H
        head_H = work.first_head + block_row_H % work.group
        # No part has counted the sink.
        max_H, sum_H = first_step(tensors.sinks + head_H if VARIANT.sinks else None, real_H, VARIANT.sinks)
        acc_HD = gl.full([ROWS, WIDE], 0.0, gl.float32, by_value)
        for done in range(0, work.num_parts, PARTS):
            slot_K = slot_of(work.first_program, done + part_K)
            row_KH = ((slot_K * tensors.num_groups + GROUP) * GROUP_ROWS)[:, None] + row_H[None]
            real_KH = (done + part_K < work.num_parts)[:, None] & real_H[None]
            lse_KH = gl.load(tensors.parts_lse + row_KH, mask=real_KH, other=float("-inf"))
            real_KHD = real_KH[:, :, None] & (d_1D < D)[None, :, :]
            part_KHD = gl.load(tensors.parts + (row_KH * D)[:, :, None] + d_1D[None, :, :], mask=real_KHD, other=0.0)
            new_max_H = gl.maximum(max_H, gl.max(lse_KH, 0))
            weight_KH = gl.exp2(lse_KH - new_max_H[None])
            keep_H = gl.exp2(max_H - new_max_H)
            sum_H, max_H = sum_H * keep_H + gl.sum(weight_KH, 0), new_max_H
            keep_H1 = gl.convert_layout(keep_H, gl.SliceLayout(1, by_value))[:, None]
            acc_HD = acc_HD * keep_H1 + gl.sum(part_KHD * weight_KH[:, :, None], 0)
        sum_H = gl.convert_layout(sum_H, gl.SliceLayout(1, by_value))
        max_H = gl.convert_layout(max_H, gl.SliceLayout(1, by_value))
        row_H = gl.convert_layout(block_row_H, gl.SliceLayout(1, by_value))
        real_H = gl.convert_layout(real_H, gl.SliceLayout(1, by_value))
        head_H = gl.convert_layout(head_H, gl.SliceLayout(1, by_value))
        out_HD, lse_H = last_step(acc_HD, sum_H, max_H)
        token_H = (work.start + row_H // work.group).to(gl.int64)
        out_H = tensors.out + token_H * tensors.out_token + head_H * tensors.out_head
        real_HD = real_H[:, None] & (d_1D < D)
        gl.store(out_H[:, None] + d_1D, out_HD.to(tensors.out.dtype.element_ty), mask=real_HD)
        if VARIANT.lse:
            gl.store(tensors.lse + token_H * tensors.lse_token + head_H, lse_H * LN_2, mask=real_H)
