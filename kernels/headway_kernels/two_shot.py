"""The kernel of `all_reduce` in two shots: reduce-scatter, then all-gather, through peers' memory.

1. A program has a contiguous portion of x, cut into a share a rank. It sends share s to rank s, releases a
   flag there, and waits for the flags of all that send to it.
2. It adds up its own rank's share in rank order in float32, rounds it, sends it to all, releases, waits.
3. It takes the whole reduced portion from its own memory: copies it to out, or adds the residual to its rows
   and norms them. Every rank norms every row, so that what travels is no more than in an all-reduce.

2 (world_size - 1) / world_size times the bytes of x leave each rank: for data too long for one shot. See
`peer_memory` for the protocol. Every reduced value is computed by one rank: results are equal bit by bit.
Grid: at most PROGRAMS programs, a portion each.

Source: an all-reduce as reduce-scatter and all-gather is Rabenseifner's (Thakur et al., IJHPCA 2005); in two
shots through peers' memory, as in vLLM's custom all-reduce, whose ranks read where ours write.

Shape suffixes: V values of a tile or a row, R ranks.
"""

import triton
import triton.language as tl

from headway_kernels.one_shot import end_epoch, next_epoch


@triton.jit(do_not_specialize=["max_polls"])
def _two_shot_kernel(
    x_ptr,
    out_ptr,
    residual_ptr,
    weight_ptr,
    normed_ptr,
    own_ptr,
    addresses_ptr,
    flags_at,
    shares_at,
    results_at,
    num_values,
    portion,
    share,
    row_size,
    eps,
    max_polls,
    NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RANK: tl.constexpr,
    WORLD: tl.constexpr,
    RANKS: tl.constexpr,
    SLOT: tl.constexpr,
    V: tl.constexpr,
    ROW: tl.constexpr,
):
    """portion, share: values of a program's, and of a rank's in it; `WORLD * share` may exceed the portion.
    SLOT: values that a place for a share has. `out` takes the sums, with the residual added if there is one.
    """
    program = tl.program_id(0)
    epoch = next_epoch(own_ptr, program)
    slots = (program * 2 + (epoch & 1)).to(tl.int64) * (WORLD * SLOT)
    first = program.to(tl.int64) * portion
    size = tl.minimum(portion, num_values - first).to(tl.int32)
    v_V = tl.arange(0, V)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty

    for begin in range(0, share, V):
        for step in tl.static_range(1, WORLD):
            peer = (RANK + step) % WORLD
            at_V = peer * share + begin + v_V
            real_V = (begin + v_V < share) & (at_V < size)
            x_V = tl.load(x_ptr + first + at_V, mask=real_V)
            to_ptr = _pointer(addresses_ptr, peer, shares_at, DTYPE) + slots + RANK * SLOT
            tl.store(to_ptr + begin + v_V, x_V, mask=real_V)
    _meet(own_ptr, addresses_ptr, flags_at, program * 2, epoch, max_polls, RANK, WORLD, RANKS)

    shares_ptr = (own_ptr + shares_at).to(tl.pointer_type(DTYPE)) + slots
    for begin in range(0, share, V):
        at_V = RANK * share + begin + v_V
        real_V = (begin + v_V < share) & (at_V < size)
        sum_V = tl.zeros((V,), tl.float32)
        for sender in tl.static_range(WORLD):
            if sender == RANK:
                part_V = tl.load(x_ptr + first + at_V, mask=real_V, other=0.0)
            else:
                from_ptr = shares_ptr + sender * SLOT
                part_V = tl.load(from_ptr + begin + v_V, mask=real_V, other=0.0, cache_modifier=".cg")
            sum_V += part_V.to(tl.float32)
        for step in tl.static_range(1, WORLD + 1):  # itself last
            to_ptr = _pointer(addresses_ptr, (RANK + step) % WORLD, results_at, DTYPE) + slots
            tl.store(to_ptr + at_V, sum_V.to(DTYPE), mask=real_V)
    _meet(own_ptr, addresses_ptr, flags_at, program * 2 + 1, epoch, max_polls, RANK, WORLD, RANKS)

    results_ptr = (own_ptr + results_at).to(tl.pointer_type(DTYPE)) + slots
    if NORM:
        v_R = tl.arange(0, ROW)
        real_R = v_R < row_size
        weight_R = tl.load(weight_ptr + v_R, mask=real_R, other=0.0).to(tl.float32)
        for begin in range(0, size, row_size):
            total_R = tl.load(results_ptr + begin + v_R, mask=real_R, other=0.0, cache_modifier=".cg")
            if HAS_RESIDUAL:
                old_R = tl.load(residual_ptr + first + begin + v_R, mask=real_R, other=0.0)
                total_R = (total_R.to(tl.float32) + old_R.to(tl.float32)).to(DTYPE)
            tl.store(out_ptr + first + begin + v_R, total_R, mask=real_R)
            total_R = total_R.to(tl.float32)
            scale = tl.rsqrt(tl.sum(total_R * total_R, 0) / row_size + eps)
            normed_R = (total_R * scale * weight_R).to(DTYPE)
            tl.store(normed_ptr + first + begin + v_R, normed_R, mask=real_R)
    else:
        for begin in range(0, size, V):
            real_V = begin + v_V < size
            out_V = tl.load(results_ptr + begin + v_V, mask=real_V, cache_modifier=".cg")
            tl.store(out_ptr + first + begin + v_V, out_V, mask=real_V)
    end_epoch(own_ptr, program, epoch)


@triton.jit
def give_up():
    """End the context: a peer that has not come in all this time will not come."""
    tl.inline_asm_elementwise("trap; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _pointer(addresses_ptr, peer, place, DTYPE: tl.constexpr):
    return tl.multiple_of((tl.load(addresses_ptr + peer) + place).to(tl.pointer_type(DTYPE)), 16)


@triton.jit
def _meet(
    own_ptr,
    addresses_ptr,
    flags_at,
    exchange,
    epoch,
    max_polls,
    RANK: tl.constexpr,
    WORLD: tl.constexpr,
    RANKS: tl.constexpr,
):
    """What this program's threads have written is there for the peers', and theirs for these.

    The block's barrier orders its threads' writes before the release, which is cumulative; the acquire comes
    before the second barrier, and that before all reads.
    """
    rank_R = tl.arange(0, RANKS)
    other_R = (rank_R < WORLD) & (rank_R != RANK)
    address_R = tl.load(addresses_ptr + rank_R, mask=other_R, other=0) + flags_at
    theirs_R = address_R.to(tl.pointer_type(tl.int32)) + exchange * WORLD + RANK
    ours_R = (own_ptr + flags_at).to(tl.pointer_type(tl.int32)) + exchange * WORLD + rank_R
    tl.debug_barrier()
    tl.atomic_xchg(theirs_R, epoch, mask=other_R, sem="release", scope="sys")
    missing = 1
    polls = max_polls
    while missing > 0:
        found_R = tl.atomic_add(ours_R, 0, mask=other_R, sem="acquire", scope="sys")
        missing = tl.max((other_R & (found_R != epoch)).to(tl.int32), 0)
        polls -= 1
        if polls == 0:
            give_up()
    tl.debug_barrier()
