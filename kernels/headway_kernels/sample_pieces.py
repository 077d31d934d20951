"""What the sampling kernels have in common: logits as scores, masses, and the noise.

As in `reference_sample` and `reference_noise`, value by value: integers are exact, the logarithm is CUDA's
own, and launches that use these keep a product and a sum from being contracted into one rounding (`EXACT`).

Shape suffixes: V tokens of a program.
"""

import triton
import triton.language as tl

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
MULTIPLIER_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MULTIPLIER_2 = tl.constexpr(0x94D049BB133111EB)
MASS_SCALE = tl.constexpr(float(1 << 40))
GREATEST = tl.constexpr(3.4028234663852886e38)
EXACT = {"enable_fp_fusion": False}


@triton.jit
def load_scores(row_ptr, id_V, there_V):
    """Logits in float32: NaN is -inf, infinity the greatest number, and zero has one sign."""
    logit_V = tl.load(row_ptr + id_V, mask=there_V, other=float("-inf")).to(tl.float32) + 0.0
    return tl.where(logit_V != logit_V, float("-inf"), tl.minimum(logit_V, GREATEST))


@triton.jit
def mass_of(score_V, largest, temperature):
    """The probability of a score, up to a common factor, in fixed point: int64, 2**40 for the largest."""
    exponent_V = tl.div_rn(score_V - tl.maximum(largest, -GREATEST), temperature)
    return (tl.exp(exponent_V) * MASS_SCALE).to(tl.int64)


@triton.jit
def noise_key(seed, position):
    """Output number `position` of the SplitMix64 that starts at `seed`'s first output."""
    first = _splitmix64(seed.to(tl.uint64))
    return _splitmix64(first + position.to(tl.uint64) * GOLDEN)


@triton.jit
def gumbel(key, id_V):
    """Standard Gumbel noise of token ids (int64) under a row's key."""
    bits_V = (_scramble(key + (id_V + 1).to(tl.uint64) * GOLDEN) >> 40).to(tl.int32) | 1
    return -tl.log(-tl.log(bits_V.to(tl.float32) * (2.0**-24)))


@triton.jit
def _splitmix64(state):
    z = _scramble(state + GOLDEN)
    return z ^ (z >> 31)


@triton.jit
def _scramble(z):
    z = (z ^ (z >> 30)) * MULTIPLIER_1
    return (z ^ (z >> 27)) * MULTIPLIER_2
