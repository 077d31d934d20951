"""The kernels of `all_reduce` in one shot: every rank sends all of its data to all, and adds up what it got.

    out = sum over ranks r, in this order, of x_r        (float32, then rounded)

4 bytes of data travel with 4 of epoch in one 8-byte word, so a word that shows the epoch is complete: one
way over the link, with neither fence nor flag, for twice the bytes. See `peer_memory` for the protocol. A
rank sends to itself too: then all ranks add the same words in the same order, and their results are equal
bit by bit.

A word holds two 16-bit values or one 32-bit value; one 16-bit value where x is odd in size or place. Grids:
at most SHOT_PROGRAMS programs, which have a tile each (`_one_shot_kernel`) or take rows in turn
(`_one_shot_norm_kernel`).

Shape suffixes: W words of a tile or a row.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["max_polls"])
def _one_shot_kernel(
    x_ptr,
    out_ptr,
    own_ptr,
    addresses_ptr,
    words_at,
    num_words,
    max_polls,
    DTYPE: tl.constexpr,
    PAIRS: tl.constexpr,
    RANK: tl.constexpr,
    WORLD: tl.constexpr,
    TOGETHER: tl.constexpr,
    SLOT: tl.constexpr,
    W: tl.constexpr,
):
    program = tl.program_id(0)
    word_W = tl.arange(0, W)
    at_W = program * W + word_W
    real_W = at_W < num_words
    data_W = tl.load(x_ptr + at_W, mask=real_W, other=0).to(tl.int32)
    epoch = next_epoch(own_ptr, program)
    place = (program * 2 + (epoch & 1)) * (WORLD * SLOT)
    _send(addresses_ptr, words_at, place + RANK * SLOT + word_W, data_W, real_W, epoch, RANK, WORLD)
    tl.debug_barrier()
    words_ptr = (own_ptr + words_at).to(tl.pointer_type(tl.int64)) + place
    low_W, high_W = _sum(words_ptr, word_W, real_W, epoch, max_polls, DTYPE, PAIRS, WORLD, TOGETHER, SLOT)
    tl.store(out_ptr + at_W, _packed(low_W, high_W, DTYPE, PAIRS).to(out_ptr.dtype.element_ty), mask=real_W)
    end_epoch(own_ptr, program, epoch)


@triton.jit(do_not_specialize=["max_polls"])
def _one_shot_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    normed_ptr,
    total_ptr,
    own_ptr,
    addresses_ptr,
    words_at,
    num_rows,
    row_words,
    row_size,
    eps,
    max_polls,
    HAS_RESIDUAL: tl.constexpr,
    DTYPE: tl.constexpr,
    PAIRS: tl.constexpr,
    RANK: tl.constexpr,
    WORLD: tl.constexpr,
    TOGETHER: tl.constexpr,
    SLOT: tl.constexpr,
    W: tl.constexpr,
):
    """row_size: values of a row, as a float."""
    program = tl.program_id(0)
    step = tl.num_programs(0)
    word_W = tl.arange(0, W)
    real_W = word_W < row_words
    data_W = tl.load(x_ptr + program * row_words + word_W, mask=real_W, other=0).to(tl.int32)
    epoch = next_epoch(own_ptr, program)
    place = (program * 2 + (epoch & 1)) * (WORLD * SLOT)
    sent_W = place + RANK * SLOT + word_W
    _send(addresses_ptr, words_at, sent_W, data_W, real_W, epoch, RANK, WORLD)
    for row in range(program + step, num_rows, step):
        data_W = tl.load(x_ptr + row * row_words + word_W, mask=real_W, other=0).to(tl.int32)
        sent_W += row_words
        _send(addresses_ptr, words_at, sent_W, data_W, real_W, epoch, RANK, WORLD)
    tl.debug_barrier()
    # What waits for nobody is read while the words travel.
    per_word: tl.constexpr = 2 if PAIRS else 1
    low_weight_W = tl.load(weight_ptr + per_word * word_W, mask=real_W, other=0.0).to(tl.float32)
    high_weight_W = low_weight_W
    if PAIRS:
        high_weight_W = tl.load(weight_ptr + 2 * word_W + 1, mask=real_W, other=0.0).to(tl.float32)
    words_ptr = (own_ptr + words_at).to(tl.pointer_type(tl.int64)) + place
    got_W = word_W
    for row in range(program, num_rows, step):
        at_W = row * row_words + word_W
        old_W = tl.zeros((W,), tl.int32)
        if HAS_RESIDUAL:
            old_W = tl.load(residual_ptr + at_W, mask=real_W, other=0).to(tl.int32)
        low_W, high_W = _sum(words_ptr, got_W, real_W, epoch, max_polls, DTYPE, PAIRS, WORLD, TOGETHER, SLOT)
        low_W, high_W = low_W.to(DTYPE).to(tl.float32), high_W.to(DTYPE).to(tl.float32)
        if HAS_RESIDUAL:
            old_low_W, old_high_W = _halves(old_W, DTYPE, PAIRS)
            low_W = (low_W + old_low_W).to(DTYPE).to(tl.float32)
            high_W = (high_W + old_high_W).to(DTYPE).to(tl.float32)
        total_W = _packed(low_W, high_W, DTYPE, PAIRS)
        tl.store(total_ptr + at_W, total_W.to(total_ptr.dtype.element_ty), mask=real_W)
        squares_W = tl.where(real_W, low_W * low_W + high_W * high_W, 0.0)
        scale = tl.rsqrt(tl.sum(squares_W, 0) / row_size + eps)
        normed_W = _packed(low_W * scale * low_weight_W, high_W * scale * high_weight_W, DTYPE, PAIRS)
        tl.store(normed_ptr + at_W, normed_W.to(normed_ptr.dtype.element_ty), mask=real_W)
        got_W += row_words
    end_epoch(own_ptr, program, epoch)


@triton.jit
def next_epoch(own_ptr, program):
    """The epoch of this program's call. After 2^32 - 1 comes 2: 0 is never one, and parity goes on."""
    last = tl.load(own_ptr.to(tl.pointer_type(tl.int32)) + program)
    return tl.where(last == -1, 2, last + 1)


@triton.jit
def end_epoch(own_ptr, program, epoch):
    tl.debug_barrier()
    tl.store(own_ptr.to(tl.pointer_type(tl.int32)) + program, epoch)


@triton.jit
def give_up():
    """End the context: a peer that has not come in all this time will not come."""
    tl.inline_asm_elementwise("trap; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _send(addresses_ptr, words_at, place_W, data_W, real_W, epoch, RANK: tl.constexpr, WORLD: tl.constexpr):
    tagged_W = (epoch.to(tl.int64) << 32) | (data_W.to(tl.int64) & 0xFFFFFFFF)
    for step in tl.static_range(1, WORLD + 1):  # itself last
        address = tl.load(addresses_ptr + (RANK + step) % WORLD) + words_at
        words_ptr = tl.multiple_of(address.to(tl.pointer_type(tl.int64)), 16)
        tl.store(words_ptr + place_W, tagged_W, mask=real_W)


@triton.jit
def _sum(
    words_ptr,
    word_W,
    real_W,
    epoch,
    max_polls,
    DTYPE: tl.constexpr,
    PAIRS: tl.constexpr,
    WORLD: tl.constexpr,
    TOGETHER: tl.constexpr,
    SLOT: tl.constexpr,
):
    """The sums of the words of every sender, in float32: of the last look, which found all there.

    TOGETHER: all senders' words are asked for before the first is looked at; registers must hold them.
    """
    low_W = tl.zeros(word_W.shape, tl.float32)
    high_W = tl.zeros(word_W.shape, tl.float32)
    missing = 1
    polls = max_polls
    while missing > 0:
        low_W = tl.zeros(word_W.shape, tl.float32)
        high_W = tl.zeros(word_W.shape, tl.float32)
        missing_W = tl.zeros(word_W.shape, tl.int32)
        if TOGETHER:
            for sender in tl.static_range(WORLD):
                tagged_W = tl.load(words_ptr + (sender * SLOT + word_W), mask=real_W, other=0, volatile=True)
                missing_W |= _unlike(tagged_W, real_W, epoch)
                sent_low_W, sent_high_W = _halves(tagged_W.to(tl.int32), DTYPE, PAIRS)
                low_W += sent_low_W
                high_W += sent_high_W
        else:
            for sender in range(WORLD):
                tagged_W = tl.load(words_ptr + (sender * SLOT + word_W), mask=real_W, other=0, volatile=True)
                missing_W |= _unlike(tagged_W, real_W, epoch)
                sent_low_W, sent_high_W = _halves(tagged_W.to(tl.int32), DTYPE, PAIRS)
                low_W += sent_low_W
                high_W += sent_high_W
        missing = tl.max(missing_W, 0)
        polls -= 1
        if polls == 0:
            give_up()
    return low_W, high_W


@triton.jit
def _unlike(tagged_W, real_W, epoch):
    return (real_W & ((tagged_W >> 32).to(tl.int32) != epoch)).to(tl.int32)


@triton.jit
def _halves(data_W, DTYPE: tl.constexpr, PAIRS: tl.constexpr):
    """The values of 4 bytes in float32; the second is zero where there is none."""
    if tl.float32 == DTYPE:
        low_W = data_W.to(tl.float32, bitcast=True)
    else:
        low_W = data_W.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
    high_W = tl.zeros(data_W.shape, tl.float32)
    if PAIRS:
        high_W = (data_W >> 16).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
    return low_W, high_W


@triton.jit
def _packed(low_W, high_W, DTYPE: tl.constexpr, PAIRS: tl.constexpr):
    """Values rounded to DTYPE, in the 4 bytes that `_halves` takes apart."""
    if tl.float32 == DTYPE:
        data_W = low_W.to(tl.int32, bitcast=True)
    else:
        data_W = low_W.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32)
    if PAIRS:
        high_bits_W = high_W.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32)
        data_W = (data_W & 0xFFFF) | (high_bits_W << 16)
    return data_W
