"""A multiplying group of the kernels for Hopper: four warps, 64 rows of one tile after another.

q k of tile i + 1 is started before p v of tile i, so that the matrix units have that to do while the softmax
of tile i + 1 is computed. Scores, probabilities and the result stay in registers; q lies in shared memory.

Source: FlashAttention-3 (arXiv 2407.08608, section 3.2, algorithm 2).

Shape suffixes: M rows, N positions of a tile, D values of a head.
"""

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from headway_kernels import online_softmax
from headway_kernels.hopper_merge import launches_before, merge_parts, slot_of, tell
from headway_kernels.hopper_work import GROUP_ROWS, begin_of, begun, read_note, token_of
from headway_kernels.online_softmax import LN_2, LOG2_E, LOWEST

shape_scores = gluon.jit(online_softmax.shape_scores.fn)
# Triton 3.6 has another name for it.
copy_rows = (
    async_copy.async_load if hasattr(async_copy, "async_load") else async_copy.async_copy_global_to_shared
)


class Tensors(NamedTuple):
    """Queries and results, and what heads have their own of."""

    q: Any
    q_token: Any
    q_head: Any
    out: Any
    out_token: Any
    out_head: Any
    lse: Any
    lse_token: Any
    parts: Any  # [slots, groups * 64, D], and their log-sum-exps in base 2
    parts_lse: Any
    finished: Any  # by program, how often a group has told that its parts are there
    num_groups: Any  # of such groups, whose rows make up a part
    sinks: Any
    slopes: Any


class Scoring(NamedTuple):
    """What makes scores of products, for all rows."""

    scale: Any
    window: Any
    softcap: Any


class Rows(NamedTuple):
    """What the group's rows see: their positions [M] and slopes [M], and the last position of all."""

    position: Any
    slope: Any
    last: Any


class State(NamedTuple):
    """The online softmax before p v of the latest tile: acc [M, D], p in pairs [M, N / 2]; max, sum [M]."""

    acc: Any
    pairs: Any
    max: Any
    sum: Any


@gluon.jit
def multiply(
    GROUP: gl.constexpr,
    board,
    q_smem,
    keys,
    values,
    tensors,
    scoring,
    D: gl.constexpr,
    VARIANT: gl.constexpr,
):
    """One tile of rows after another, the next one's q fetched meanwhile; then what is to be merged."""
    STAGES: gl.constexpr = keys.smem.shape[0]
    q_smem = q_smem.index(GROUP)
    num_done, num_read = 0, 1
    num_launches = 0
    if VARIANT.shares and GROUP == 0:
        num_launches = launches_before(tensors)
    work, span = read_note(0, board)
    _fetch_queries(GROUP, work, q_smem, tensors, D, VARIANT)
    while span.num_tiles > 0:
        async_copy.wait_group(0)
        fence_async_shared()
        rows, state = _first_step(GROUP, num_done, work, span, q_smem, keys, tensors, scoring, VARIANT)
        for tile in range(1, span.num_masked):
            state = _step(num_done, tile, state, span, rows, q_smem, keys, values, scoring, True, VARIANT)
        for tile in range(gl.maximum(span.num_masked, 1), span.num_tiles):
            state = _step(num_done, tile, state, span, rows, q_smem, keys, values, scoring, False, VARIANT)
        num_done += span.num_tiles
        acc_MD, p_MN = _add_values(num_done - 1, state, values)
        next_work, next_span = read_note(num_read, board)
        _fetch_queries(GROUP, next_work, q_smem, tensors, D, VARIANT)
        acc_MD, p_MN = warpgroup_mma_wait(0, deps=(acc_MD, p_MN))
        mbarrier.arrive(values.empty.index((num_done - 1) % STAGES), count=1)
        _write(GROUP, work, acc_MD, state, q_smem, tensors, D, VARIANT)
        work, span = next_work, next_span
        num_read += 1
    if VARIANT.shares:
        tell(tensors)
        if GROUP == 0:  # one group for all rows: code that runs once costs its fetching
            first = begun(board)
            if num_read > 1 and first.num_parts > 1:
                merge_parts(first, num_launches, tensors, q_smem.shape[1], D, VARIANT)


@gluon.jit
def _fetch_queries(GROUP: gl.constexpr, work, q_smem, tensors, D: gl.constexpr, VARIANT: gl.constexpr):
    """Start to copy the group's q [64, D], to wait for."""
    WIDE: gl.constexpr = q_smem.shape[1]
    LANES: gl.constexpr = min(WIDE // 8, 32)
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LANES, LANES], [4, 1], [1, 0])
    token_M, head_M, real_M = _rows_of(GROUP, work, gl.SliceLayout(1, layout), VARIANT)
    d_D = gl.arange(0, WIDE, layout=gl.SliceLayout(0, layout))
    q_M = tensors.q + token_M * tensors.q_token + head_M * tensors.q_head
    copy_rows(q_smem, q_M[:, None] + d_D[None], mask=real_M[:, None] & (d_D < D)[None])
    async_copy.commit_group()


@gluon.jit
def _rows_of(
    GROUP: gl.constexpr, work, LAYOUT: gl.constexpr, VARIANT: gl.constexpr, ANEW: gl.constexpr = False
):
    """(token, head, whether it is one) of the group's rows. ANEW: divide again, though these rows have been
    asked for: quotients kept in registers through all tiles make others spill.
    """
    first_row = work.first_row
    if ANEW:  # the compiler cannot know that this is the same number
        first_row = gl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [first_row], gl.int32, is_pure=False, pack=1
        )
    row_M = first_row + GROUP * GROUP_ROWS + gl.arange(0, GROUP_ROWS, layout=LAYOUT)
    token_M, head_M = token_of(row_M, work.group, VARIANT.single)
    return (work.start + token_M).to(gl.int64), work.first_head + head_M, token_M < work.num_queries


@gluon.jit
def _first_step(
    GROUP: gl.constexpr, num_done, work, span, q_smem, keys, tensors, scoring, VARIANT: gl.constexpr
):
    """(rows, state) behind the first tile of positions, with which nothing can overlap."""
    STAGES: gl.constexpr = keys.smem.shape[0]
    POSITIONS: gl.constexpr = keys.smem.shape[1]
    WIDE: gl.constexpr = keys.smem.shape[2]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, POSITIONS, 16])
    RESULT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, SCORES)
    token_M, head_M, real_M = _rows_of(GROUP, work, by_row, VARIANT)
    query_M = gl.minimum((token_M - work.start).to(gl.int32), work.num_queries - 1)
    position_M = work.context_len - work.num_queries + query_M
    slope_M = position_M
    if VARIANT.alibi:
        slope_M = gl.load(tensors.slopes + head_M, mask=real_M, other=0.0)
    rows = Rows(position_M, slope_M, span.last)
    max_M = gl.full([GROUP_ROWS], LOWEST, gl.float32, by_row)
    sum_M = gl.full([GROUP_ROWS], 0.0, gl.float32, by_row)
    if VARIANT.sinks:
        whole = work.num_parts == 1 if VARIANT.shares else True  # the merge counts a sink once for all parts
        sink_M = gl.load(tensors.sinks + head_M, mask=real_M & whole, other=0.0).to(gl.float32) * LOG2_E
        max_M = gl.where(whole, sink_M, max_M)
        sum_M += gl.where(whole, 1.0, 0.0)

    stage = num_done % STAGES
    mbarrier.wait(keys.full.index(stage), num_done // STAGES & 1)
    score_MN = _products(q_smem, keys.smem.index(stage), SCORES)
    score_MN = warpgroup_mma_wait(0, deps=(score_MN,))
    mbarrier.arrive(keys.empty.index(stage), count=1)
    begin = begin_of(0, span, POSITIONS)
    p_MN, _, max_M, sum_M = _softmax(score_MN, max_M, sum_M, begin, rows, scoring, True, VARIANT)
    acc_MD = gl.full([GROUP_ROWS, WIDE], 0.0, gl.float32, RESULT)
    return rows, State(acc_MD, _paired(p_MN, q_smem), max_M, sum_M)


@gluon.jit
def _step(
    num_done,
    tile,
    state,
    span,
    rows,
    q_smem,
    keys,
    values,
    scoring,
    MASKED: gl.constexpr,
    VARIANT: gl.constexpr,
):
    """The state behind `tile`: q k of it, p v of the one before, and its softmax meanwhile."""
    STAGES: gl.constexpr = keys.smem.shape[0]
    POSITIONS: gl.constexpr = keys.smem.shape[1]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, POSITIONS, 16])
    index = num_done + tile
    stage = index % STAGES
    mbarrier.wait(keys.full.index(stage), index // STAGES & 1)
    score_MN = _products(q_smem, keys.smem.index(stage), SCORES)
    acc_MD, p_MN = _add_values(index - 1, state, values)
    score_MN = warpgroup_mma_wait(1, deps=(score_MN,))
    mbarrier.arrive(keys.empty.index(stage), count=1)
    begin = begin_of(tile, span, POSITIONS)
    next_MN, keep_M, max_M, sum_M = _softmax(
        score_MN, state.max, state.sum, begin, rows, scoring, MASKED, VARIANT
    )
    acc_MD, p_MN = warpgroup_mma_wait(0, deps=(acc_MD, p_MN))
    mbarrier.arrive(values.empty.index((index - 1) % STAGES), count=1)
    acc_MD = acc_MD * gl.convert_layout(keep_M, gl.SliceLayout(1, acc_MD.type.layout))[:, None]
    return State(acc_MD, _paired(next_MN, q_smem), max_M, sum_M)


@gluon.jit
def _products(q_smem, k_smem, LAYOUT: gl.constexpr):
    """Start q k, to wait for."""
    zero_MN = gl.full([GROUP_ROWS, k_smem.shape[0]], 0.0, gl.float32, LAYOUT)
    return warpgroup_mma(q_smem, k_smem.permute((1, 0)), zero_MN, use_acc=False, is_async=True)


@gluon.jit
def _add_values(index, state, values):
    """Start acc + p v of tile `index` -> (acc, p), to wait for."""
    STAGES: gl.constexpr = values.smem.shape[0]
    v_smem = values.smem.index(index % STAGES)
    p_MN = gl.convert_layout(_unpaired(state.pairs, v_smem), gl.DotOperandLayout(0, state.acc.type.layout, 2))
    mbarrier.wait(values.full.index(index % STAGES), index // STAGES & 1)
    return warpgroup_mma(p_MN, v_smem, state.acc, is_async=True), p_MN


@gluon.jit
def _softmax(score_MN, max_M, sum_M, begin, rows, scoring, MASKED: gl.constexpr, VARIANT: gl.constexpr):
    """A tile's step of the online softmax -> (p, what is left of the sums before, max, sum)."""
    SHAPED: gl.constexpr = VARIANT.softcap or VARIANT.alibi
    fold = 1.0 if SHAPED else scoring.scale
    if SHAPED or MASKED:
        by_position: gl.constexpr = gl.SliceLayout(0, score_MN.type.layout)
        position_N = begin + gl.arange(0, score_MN.shape[1], layout=by_position)
        distance_MN = rows.position[:, None] - position_N[None]
        if not VARIANT.causal:
            distance_MN = gl.abs(distance_MN)
        if SHAPED:
            score_MN = shape_scores(
                score_MN,
                distance_MN,
                scoring.scale,
                scoring.softcap,
                rows.slope[:, None],
                VARIANT.softcap,
                VARIANT.alibi,
                False,
            )
        if MASKED:
            room_MN = distance_MN if VARIANT.causal else (rows.last - position_N)[None] + distance_MN * 0
            if VARIANT.window:
                room_MN = room_MN | (scoring.window - 1 - distance_MN)
            score_MN = _masked(score_MN, room_MN)
    new_max_M = gl.maximum(max_M, gl.max(score_MN, 1) * fold)
    p_MN = gl.exp2(score_MN * fold - new_max_M[:, None])
    keep_M = gl.exp2(max_M - new_max_M)
    return p_MN, keep_M, new_max_M, sum_M * keep_M + gl.sum(p_MN, 1)


@gluon.jit
def _masked(score_MN, room_MN):
    """Scores, minus infinity where there is no room, which is a number below zero.

    So are scores that are NaN, which unwritten slots may give: of NaN and a number the minimum is the number.
    By the sign's bit alone: of comparisons the compiler makes words of bits and takes them apart again, 460
    instructions for 64 scores in place of 290.
    """
    most_MN = (room_MN & -0x80000000 | 0x7F800000).to(gl.float32, bitcast=True)  # infinity with that sign
    return gl.minimum(score_MN, most_MN)


@gluon.jit
def _paired(p_MN, smem):
    """Two values of the dtype of `smem` a register, as products take them.

    What goes round a loop as single half-precision values is taken apart and joined in every round: 64 of 480
    instructions at D 64, and 440 in place of 497 TFLOP/s with all that came besides (H200, 8192 tokens).
    """
    low, high = p_MN.reshape([p_MN.shape[0], p_MN.shape[1] // 2, 2]).split()
    kind: gl.constexpr = "bf16x2" if smem.dtype == gl.bfloat16 else "f16x2"
    code: gl.constexpr = "cvt.rn." + kind + ".f32 $0, $2, $1;"
    return gl.inline_asm_elementwise(code, "=r,f,f", [low, high], gl.int32, is_pure=True, pack=1)


@gluon.jit
def _unpaired(pairs, smem):
    """[M, N] of what `_paired` made."""
    low, high = gl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;", "=h,=h,r", [pairs], (smem.dtype, smem.dtype), is_pure=True, pack=1
    )
    return gl.join(low, high).reshape([pairs.shape[0], pairs.shape[1] * 2])


@gluon.jit
def _write(GROUP: gl.constexpr, work, acc_MD, state, q_smem, tensors, D: gl.constexpr, VARIANT: gl.constexpr):
    """The result, or a part of it, and the log-sum-exp where it is asked for."""
    WIDE: gl.constexpr = acc_MD.shape[1]
    by_row: gl.constexpr = gl.SliceLayout(1, acc_MD.type.layout)
    sum_M, max_M = gl.convert_layout(state.sum, by_row), gl.convert_layout(state.max, by_row)
    token_M, head_M, real_M = _rows_of(GROUP, work, by_row, VARIANT, not VARIANT.shares)
    whole_M = gl.where(sum_M > 0.0, sum_M, 1.0)
    lse_M = gl.where(sum_M > 0.0, max_M + gl.log2(whole_M), float("-inf"))
    d_D = gl.arange(0, WIDE, layout=gl.SliceLayout(0, acc_MD.type.layout))
    real_MD = real_M[:, None] if D == WIDE else real_M[:, None] & (d_D < D)[None]
    out_MD = acc_MD * (1.0 / whole_M)[:, None]
    if VARIANT.shares and work.num_parts > 1:
        row_M = gl.arange(0, GROUP_ROWS, layout=by_row)
        slot = slot_of(work.first_program, gl.program_id(0) - work.first_program)
        part_M = (slot * tensors.num_groups + GROUP) * GROUP_ROWS + row_M
        gl.store(tensors.parts_lse + part_M, lse_M, mask=real_M)
        gl.store(tensors.parts + part_M[:, None] * D + d_D[None], out_MD, mask=real_MD)
    else:
        if VARIANT.lse:
            gl.store(tensors.lse + token_M * tensors.lse_token + head_M, lse_M * LN_2, mask=real_M)
        out_M = tensors.out + token_M * tensors.out_token + head_M * tensors.out_head
        if VARIANT.shares:  # a few rows of the 64 are real
            gl.store(out_M[:, None] + d_D[None], out_MD.to(tensors.out.dtype.element_ty), mask=real_MD)
        else:
            _store_runs(out_M, real_M, _paired(out_MD, q_smem), q_smem, D)


@gluon.jit
def _store_runs(out_M, real_M, pairs, smem, D: gl.constexpr):
    """Store rows whose values `_paired` made, 16 bytes a thread in place of 4: 64 of a row lie together then.

    Four threads, a quad, have 8 values of a row in turn, two each. Of four such runs each takes one.
    """
    ROWS: gl.constexpr = pairs.shape[0]
    WORDS: gl.constexpr = pairs.shape[1]
    WIDE: gl.constexpr = 2 * WORDS
    runs = pairs.reshape([ROWS, WORDS // 16, 2, 2, 4]).permute((0, 1, 4, 2, 3))
    evens, odds = runs.split()
    run_0, run_2 = evens.split()
    run_1, run_3 = odds.split()
    by_lane: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, run_0.type.layout))
    lane = gl.arange(0, 4, layout=by_lane)[None, None]  # of the quad
    run_0, run_1 = _exchanged(run_0, run_1, lane, 1)
    run_2, run_3 = _exchanged(run_2, run_3, lane, 1)
    run_0, run_2 = _exchanged(run_0, run_2, lane, 2)
    run_1, run_3 = _exchanged(run_1, run_3, lane, 2)
    # Now a lane's words are those of one run, whose number is the lane's: [M, runs / 4, lane, word].
    words = gl.join(gl.join(run_0, run_2), gl.join(run_1, run_3)).reshape([ROWS, WORDS])
    out_MD = _unpaired(gl.convert_layout(words, _layout_of_runs(WORDS), assert_trivial=True), smem)
    by_row: gl.constexpr = gl.SliceLayout(1, out_MD.type.layout)
    out_M = gl.convert_layout(out_M, by_row, assert_trivial=True)
    real_M = gl.convert_layout(real_M, by_row, assert_trivial=True)
    d_D = gl.arange(0, WIDE, layout=gl.SliceLayout(0, out_MD.type.layout))
    real_MD = real_M[:, None] if D == WIDE else real_M[:, None] & (d_D < D)[None]
    gl.store(out_M[:, None] + d_D[None], out_MD, mask=real_MD)


@gluon.jit
def _exchanged(low, high, lane, BIT: gl.constexpr):
    """(low, high), half of each exchanged with the lane whose number differs by `BIT`: the lane without it
    has both lows then, the other one both highs.
    """
    upper = (lane & BIT) != 0
    sent = gl.where(upper, low, high)
    code: gl.constexpr = f"shfl.sync.bfly.b32 $0, $1, {BIT}, 31, -1;"
    got = gl.inline_asm_elementwise(code, "=r,r", [sent], gl.int32, is_pure=False, pack=1)
    return gl.where(upper, got, low), gl.where(upper, high, got)


@gluon.constexpr_function
def _layout_of_runs(words):
    """Of 64 rows of so many words, as products give them, but that a thread has four words in a row."""
    others = [[0, 16 << bit] for bit in range((words // 16).bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [8, 0], *others],
        lane_bases=[[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[64, words],
    )
