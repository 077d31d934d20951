"""What the attention kernels have in common: scores in base 2, and one step of the online softmax.

For a row of scores s seen tile by tile, with m the greatest so far, l the sum of exp(s - m) and acc the sum
of exp(s - m) * v, a tile turns (m, l, acc) into (m', l e^(m - m') + ..., acc e^(m - m') + ...); the end is
acc / l (arXiv 1805.02867, 2205.14135). Everything is in base 2, the unit of the hardware's exponential:
scores are multiplied by log2(e) once, together with the scale. m starts at `LOWEST` and not at minus
infinity, so that a row that has seen nothing yet makes no NaN.

Shape suffixes: M rows of a tile (query heads of a KV head, by token), N positions of a tile, D values of a
head.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1.0e30)


@triton.jit
def first_step(sink, rows_M, HAS_SINKS: tl.constexpr):
    """(max_M, sum_M) before any tile: a sink is a score seen already, of a position without a value."""
    if HAS_SINKS:
        sink_M = tl.load(sink, mask=rows_M, other=0.0).to(tl.float32) * LOG2_E
        return sink_M, sink_M * 0.0 + 1.0
    return tl.where(rows_M, LOWEST, LOWEST), tl.where(rows_M, 0.0, 0.0)


@triton.jit
def shape_scores(
    dot_MN,
    distance_MN,
    scale,
    softcap,
    slope_M1,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Scores in base 2 from q k: scaled, capped, lowered by distance."""
    score_MN = dot_MN * scale
    if HAS_SOFTCAP:
        score_MN = softcap * tanh(score_MN / softcap, EXACT)
    if HAS_ALIBI:
        score_MN -= slope_M1 * distance_MN
    return score_MN * LOG2_E


@triton.jit
def tanh(x, EXACT: tl.constexpr):
    """By the hardware's exponential. Near zero 1 - 2 / (e^2x + 1) cancels: EXACT takes Taylor's series."""
    big = 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2_E)) + 1.0)
    if EXACT:
        y = x * x
        near = x * (1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835)))))
        return tl.where(y < 0.04, near, big)
    return big


@triton.jit
def softmax_step(acc_MD, sum_M, max_M, score_MN, v_ND, scale, PRECISION: tl.constexpr):
    """Take one tile of scores, which `scale` (positive) brings to base 2, and its values."""
    new_max_M = tl.maximum(max_M, tl.max(score_MN, 1) * scale)
    p_MN = tl.exp2(score_MN * scale - new_max_M[:, None])  # one fused multiply-add a score
    keep_M = tl.exp2(max_M - new_max_M)
    sum_M = sum_M * keep_M + tl.sum(p_MN, 1)
    acc_MD = tl.dot(p_MN.to(v_ND.dtype), v_ND, acc_MD * keep_M[:, None], input_precision=PRECISION)
    return acc_MD, sum_M, new_max_M


@triton.jit
def last_step(acc_MD, sum_M, max_M):
    """(output, log-sum-exp in base 2); zeros and minus infinity for a row that saw nothing."""
    seen_M = sum_M > 0.0
    sum_M = tl.where(seen_M, sum_M, 1.0)
    return acc_MD / sum_M[:, None], tl.where(seen_M, max_M + tl.log2(sum_M), float("-inf"))
