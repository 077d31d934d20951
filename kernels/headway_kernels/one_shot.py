"""The kernel of `all_reduce` in one shot: every rank sends all its data to the others and adds up what came.

    out = sum over ranks r, in this order, of x_r        (float32, then rounded)

Data travels in words of 8 bytes that say themselves that they have come (see `words`): one way over the link,
with neither fence nor flag. All ranks add the same values in the same order, so that their results are equal
bit by bit. Nothing but words goes through peers' memory: a rank's own values stay where they are.

Programs take tiles in turn: W words, or a row where rows are normed, which then never leaves its program.
They send all of them first. What waits for nobody (residual, weight, own values) is read before the wait.
Grid: at most PROGRAMS programs, and no more than tiles.

Shape suffixes: W words of a tile, P values of a word.
"""

import triton
import triton.language as tl

from headway_kernels.words import clear, packed, place_of, received, send, unpacked


@triton.jit(do_not_specialize=["max_polls"])
def _one_shot_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    normed_ptr,
    own_ptr,
    addresses,
    words_at,
    num_values,
    num_tiles,
    tile_size,
    eps,
    max_polls,
    NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RANK: tl.constexpr,
    WORLD: tl.constexpr,
    SLOT: tl.constexpr,
    W: tl.constexpr,
    THREADS: tl.constexpr,
):
    """addresses: a tuple of all ranks', at hand without a load. tile_size: values of a tile. SLOT: words that
    a program's tiles have room for.
    """
    program = tl.program_id(0)
    step = tl.num_programs(0)
    P: tl.constexpr = 64 // x_ptr.dtype.element_ty.primitive_bitwidth
    tile_bytes = (tile_size + P - 1) // P * 8
    word_W = tl.arange(0, W)
    value_WP = word_W[:, None] * P + tl.arange(0, P)[None, :]

    # The first tile is asked for with the epoch, not behind it.
    real_WP = _real(program, value_WP, tile_size, num_values)
    x_WP = tl.load(x_ptr + program * tile_size + value_WP, mask=real_WP, other=0.0)
    epoch = next_epoch(own_ptr, program)
    place_W = words_at + (program * 2 + (epoch & 1)).to(tl.int64) * (8 * (WORLD - 1) * SLOT) + 8 * word_W
    real_W = _real(program, word_W * P, tile_size, num_values)
    _send(addresses, place_W, x_WP, real_W, RANK, WORLD, SLOT)
    sent_W = place_W
    for tile in range(program + step, num_tiles, step):
        sent_W += tile_bytes
        real_WP = _real(tile, value_WP, tile_size, num_values)
        x_WP = tl.load(x_ptr + tile * tile_size + value_WP, mask=real_WP, other=0.0)
        _send(addresses, sent_W, x_WP, _real(tile, word_W * P, tile_size, num_values), RANK, WORLD, SLOT)
    tl.debug_barrier()  # all threads have read the epoch
    end_epoch(own_ptr, program, epoch)

    if NORM:
        weight_WP = tl.load(weight_ptr + value_WP, mask=value_WP < tile_size, other=0.0)
    got_W = addresses[RANK] + place_W
    for tile in range(program, num_tiles, step):
        at_WP = tile * tile_size + value_WP
        real_WP = _real(tile, value_WP, tile_size, num_values)
        x_WP = tl.load(x_ptr + at_WP, mask=real_WP, other=0.0)
        if HAS_RESIDUAL:
            old_WP = tl.load(residual_ptr + at_WP, mask=real_WP, other=0.0)
        real_W = _real(tile, word_W * P, tile_size, num_values)
        total_WP = _sum(x_WP, got_W, real_W, max_polls, RANK, WORLD, SLOT, W // THREADS).to(x_WP.dtype)
        if HAS_RESIDUAL:
            total_WP = (total_WP.to(tl.float32) + old_WP.to(tl.float32)).to(x_WP.dtype)
        tl.store(total_ptr + at_WP, total_WP, mask=real_WP)
        if NORM:
            total_WP = total_WP.to(tl.float32)
            square = tl.sum(tl.sum(total_WP * total_WP, 1), 0)
            normed_WP = total_WP * tl.rsqrt(square / tile_size + eps) * weight_WP.to(tl.float32)
            tl.store(normed_ptr + at_WP, normed_WP.to(x_WP.dtype), mask=real_WP)
        tl.debug_barrier()  # all threads have their words
        clear(got_W, real_W, WORLD - 1, SLOT)
        got_W += tile_bytes


@triton.jit
def next_epoch(own_ptr, program):
    """The epoch of this program's call. After 2^32 - 1 comes 2: 0 is never one, and parity goes on."""
    last = tl.load(own_ptr.to(tl.pointer_type(tl.int32)) + program)
    return tl.where(last == -1, 2, last + 1)


@triton.jit
def end_epoch(own_ptr, program, epoch):
    """For the next call, which begins after this kernel; behind a barrier after all threads' `next_epoch`."""
    tl.store(own_ptr.to(tl.pointer_type(tl.int32)) + program, epoch)


@triton.jit
def _real(tile, value, tile_size, num_values):
    """Whether there is such a value of a tile, or a word that begins with it."""
    return (value < tile_size) & (tile * tile_size + value < num_values)


@triton.jit
def _send(addresses, place_W, x_WP, real_W, RANK: tl.constexpr, WORLD: tl.constexpr, SLOT: tl.constexpr):
    data_W = packed(x_WP)
    for turn in tl.static_range(1, WORLD):
        slot_W = place_W + place_of(RANK, (RANK + turn) % WORLD) * (8 * SLOT)
        send(addresses[(RANK + turn) % WORLD] + slot_W, data_W, real_W)


@triton.jit
def _sum(
    own_WP,
    address_W,
    real_W,
    max_polls,
    RANK: tl.constexpr,
    WORLD: tl.constexpr,
    SLOT: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    sum_WP = own_WP.to(tl.float32)
    if WORLD > 1:
        words = received(address_W, real_W, max_polls, WORLD - 1, SLOT, TOGETHER)
        for rank in tl.static_range(WORLD):
            if rank == RANK:
                part_WP = own_WP.to(tl.float32)
            else:
                part_WP = unpacked(words[place_of(rank, RANK)], own_WP.dtype).to(tl.float32)
            sum_WP = part_WP if rank == 0 else sum_WP + part_WP
    return sum_WP
