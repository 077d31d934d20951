"""The slopes of ALiBi (arXiv 2108.12409): a score is lowered by its head's slope, a position back."""


def alibi_slopes(num_heads: int, *, max_bias: float = 8.0) -> tuple[float, ...]:
    """A geometric sequence for a power of two heads; others take every second slope of twice as many, too.

    max_bias: the slope of the last of 2^n heads is 2 to the minus `max_bias`.
    """
    lower = 1 << (num_heads.bit_length() - 1)  # the largest power of two within
    own = _geometric(lower, max_bias)
    between = _geometric(2 * lower, max_bias)[::2]
    return (*own, *between[: num_heads - lower])


def _geometric(num_heads: int, max_bias: float) -> tuple[float, ...]:
    return tuple(2.0 ** (-max_bias * (head + 1) / num_heads) for head in range(num_heads))
