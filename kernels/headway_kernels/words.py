"""Words of 8 bytes that say themselves that they have come, between ranks' memory, for `one_shot`.

A word holds four 16-bit values or two of 32 bits, its bits inverted, and 0 stands for what has not come.
Each 4 bytes are looked at, so a word need not arrive whole. 4 bytes of ones, which are NaNs, would be 0:
their last bit is cleared, and they stay NaNs. Whoever has read words puts 0 back for the next time.

Source: the Lamport all-reduces of TensorRT-LLM and FlashInfer, where -0.0 stands for what has not come.

A thread waits for its own words alone, and looks at all of them at once. Triton has no such loops, so they
are PTX; its interpreter has loops over the whole tile in their place.

Shape suffixes: W words of a tile, P values of a word.
"""

import triton
import triton.language as tl
from triton import knobs

HASTY = tl.constexpr(1000)  # looks before a thread rests, about a microsecond, between two


@triton.jit
def packed(x_WP):
    """Values as words to send."""
    P: tl.constexpr = x_WP.shape[1]
    BITS: tl.constexpr = 64 // P
    bits_WP = x_WP.to(_unsigned(BITS), bitcast=True).to(tl.int64)
    data_W = ~tl.sum(bits_WP << (tl.arange(0, P) * BITS).to(tl.int64)[None, :], 1)
    low_W = tl.where(data_W.to(tl.int32) == 0, 1, 0).to(tl.int64)
    high_W = tl.where((data_W >> 32) == 0, 1, 0).to(tl.int64)
    return data_W | low_W | (high_W << 32)


@triton.jit
def unpacked(data_W, DTYPE: tl.constexpr):
    """The values of words that were received."""
    BITS: tl.constexpr = DTYPE.primitive_bitwidth
    bits_WP = ~data_W[:, None] >> (tl.arange(0, 64 // BITS) * BITS).to(tl.int64)[None, :]
    return bits_WP.to(_unsigned(BITS)).to(DTYPE, bitcast=True)


@triton.jit
def send(address_W, data_W, real_W):
    if _interpreted():
        tl.store(address_W.to(tl.pointer_type(tl.int64)), data_W, mask=real_W)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred real; setp.ne.b64 real, $1, 0; mov.b32 $0, 0;"
            " @real st.relaxed.sys.global.b64 [$1], $2; }",
            "=&r,l,l",
            [tl.where(real_W, address_W, 0), data_W],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def received(
    address_W,
    real_W,
    max_polls,
    SENDERS: tl.constexpr,
    SLOT: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """A tuple of each sender's words, as soon as all are there. They stay there: looking again does no harm.

    address_W: of the first sender's; the next one's are SLOT words further. TOGETHER: a thread's words.
    """
    if _interpreted():
        addresses = [address_W + 8 * SLOT * sender for sender in range(SENDERS)]
        words = tuple(_watched(one_W, real_W, max_polls) for one_W in addresses)
    else:
        words = tl.inline_asm_elementwise(
            _wait(SENDERS, TOGETHER, SLOT, HASTY),
            _wait_constraints(SENDERS, TOGETHER),
            [tl.where(real_W, address_W, 0), max_polls],
            dtype=_words(SENDERS),
            is_pure=True,  # Triton 3.6 may look again for another layout: pure, what nobody uses goes away
            pack=TOGETHER,
        )
    return words


@triton.jit
def clear(address_W, real_W, SENDERS: tl.constexpr, SLOT: tl.constexpr):
    """Put 0 where `received` has found words, behind a barrier after it."""
    for sender in tl.static_range(SENDERS):
        tl.store((address_W + 8 * SLOT * sender).to(tl.pointer_type(tl.int64)), 0, mask=real_W)


@triton.jit
def _watched(address_W, real_W, max_polls):
    """In the interpreter, the words of one sender."""
    word_ptr = address_W.to(tl.pointer_type(tl.int64))
    polls = max_polls
    missing = 1
    while missing > 0:
        word_W = tl.load(word_ptr, mask=real_W, other=-1)
        missing = tl.max(((word_W.to(tl.int32) == 0) | ((word_W >> 32) == 0)).to(tl.int32), 0)
        polls -= 1
        assert polls > 0, "a peer has not come"
    return word_W


@triton.constexpr_function
def place_of(sender, receiver):
    """Among the places that a receiver has for its senders: it has none for itself."""
    return sender - (sender > receiver)


@triton.constexpr_function
def _interpreted():
    return knobs.runtime.interpret


@triton.constexpr_function
def _unsigned(bits):
    return tl.uint16 if bits == 16 else tl.uint32


@triton.constexpr_function
def _words(senders):
    return (tl.int64,) * senders


@triton.constexpr_function
def _wait(senders, together, slot, hasty):
    """PTX: look at all words of a thread until none has a 0.

    Operands: `together` words of each sender; as many addresses, 0 for what is not waited for; `max_polls`.
    """
    count = senders * together
    address, polls = count, count + together
    reals = [f"real{index % together}" for index in range(count)]
    at = [f"[${address + index % together} + {index // together * 8 * slot}]" for index in range(count)]
    lines = [f".reg .pred last, here, real<{together}>; .reg .b32 low, high, least, looks; mov.b32 looks, 0;"]
    lines += [f"setp.ne.b64 real{word}, ${address + word}, 0;" for word in range(together)]
    lines += [f"mov.b64 ${index}, -1;" for index in range(count)]
    lines += ["LOOK: mov.b32 least, -1;"]
    lines += [f"@{reals[index]} ld.relaxed.sys.global.b64 ${index}, {at[index]};" for index in range(count)]
    for index in range(count):
        lines += [f"mov.b64 {{low, high}}, ${index}; min.u32 least, least, low; min.u32 least, least, high;"]
    lines += ["setp.ne.b32 here, least, 0; @here bra HERE;"]
    lines += [f"add.u32 looks, looks, 1; setp.eq.b32 last, looks, ${polls}; @last trap;"]
    lines += [f"setp.gt.u32 here, looks, {hasty}; @here nanosleep.u32 1000; bra LOOK; HERE:"]
    return "{\n" + "\n".join(lines) + "\n}"


@triton.constexpr_function
def _wait_constraints(senders, together):
    return ",".join(["=&l"] * (senders * together) + ["l"] * together + ["r"] * together)
