"""The noise of `reference_sample`: a pure function of (seed, position, token id), from integers.

Shape suffixes: S sampled rows, V vocabulary or a shard of it.
"""

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit, like the two multipliers
MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)


def gumbel_noise(seeds_S: Tensor, positions_S: Tensor, vocab_size: int, first_token: int = 0) -> Tensor:
    """Standard Gumbel noise, float32 [S, V], for token ids from `first_token` on.

    Token i gets the i-th output of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
    Generators, OOPSLA 2014) started at key(seed, position). Its top 24 bits, the lowest of them set, make u:
    exact in float32 and never 0 or 1, so g = -log(-log(u)) is finite (-2.82 to 16.64). The grain of u is also
    the limit of what can be drawn: a token far below 2**-24 in probability never is.
    """
    ids_V = torch.arange(first_token, first_token + vocab_size, device=seeds_S.device)
    state_SV = noise_key(seeds_S, positions_S)[:, None] + (ids_V + 1) * GOLDEN
    bits_SV = _scramble_(state_SV).bitwise_right_shift_(40).bitwise_and_(0xFFFFFF).bitwise_or_(1)
    return bits_SV.float().mul_(2.0**-24).log_().neg_().log_().neg_()


def noise_key(seeds_S: Tensor, positions_S: Tensor) -> Tensor:
    """int64 [S]: output number `position` of the SplitMix64 that starts at `seed`'s first output."""
    return splitmix64(splitmix64(seeds_S) + positions_S * GOLDEN)


def splitmix64(state: Tensor) -> Tensor:
    """The output of SplitMix64 after `state`, elementwise; int64 standing for 64 unsigned bits."""
    mixed = _scramble_(state + GOLDEN)
    return mixed ^ _shift_right(mixed, 31)


def _scramble_(z: Tensor) -> Tensor:
    """SplitMix64's finalizer in place, but for its last step, which leaves the top 31 bits as they are."""
    z.bitwise_xor_(_shift_right(z, 30)).mul_(MULTIPLIER_1)
    return z.bitwise_xor_(_shift_right(z, 27)).mul_(MULTIPLIER_2)


def _shift_right(z: Tensor, num_bits: int) -> Tensor:
    """A logical shift: torch's is arithmetic and would copy the sign down."""
    return (z >> num_bits).bitwise_and_((1 << (64 - num_bits)) - 1)
