"""The op `sample`: from logits to one token a row, with noise that depends on (seed, position) alone.

Order: penalties, (log-probabilities are read here), bans, temperature, top-k, top-p, min-p, choice.
Penalties are `penalise`; bans are -inf in the logits; `sample` does the rest.

The choice is the Gumbel-max trick (Gumbel 1954; Maddison et al., arXiv 1411.0030): with independent Gumbel
noise g, argmax(logits / T + g) draws from softmax(logits / T). It is computed as argmax(logits + T * g): the
same, but it cannot overflow, and at T = 0 it is plain argmax, so a batch may mix greedy and random rows.

g is a pure function of (seed, position, token id). So a row's token depends on its own seed, position and
logits only, never on the batch, and a shard of the vocabulary can draw its own part. What could depend on
the batch is kept out: cuts compare values (tokens tied with the last one kept are kept too), and masses are
summed as integers.

A NaN logit counts as -inf: it is never chosen unless all are, and then the token is 0. Other rows go on
unchanged. Nothing here waits for the device. Letters of the shapes:

    S  sampled rows    V  vocabulary    P  penalised rows    C  rows with top-k or top-p    K  candidates
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit, like the two multipliers
MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
MASS_SCALE = float(1 << 40)  # of the likeliest token; 2**22 tokens as likely still fit 63 bits


@dataclass(frozen=True, kw_only=True)
class TopCut:
    """The rows of a batch that use top-k or top-p; `num_candidates` is the largest top_k among them."""

    places_C: Tensor  # int64, in the batch
    temperature_C1: Tensor  # float32, > 0
    top_k_C1: Tensor  # int64, from 1 to V, which cuts nothing
    top_p_C1: Tensor  # float32, from 0 to 1; 1 cuts nothing
    num_candidates: int


def sample(
    logits_SV: Tensor,
    *,
    temperature_S1: Tensor | None = None,
    seeds_S: Tensor | None = None,
    positions_S: Tensor | None = None,
    top: TopCut | None = None,
    min_p_S1: Tensor | None = None,
) -> Tensor:
    """One token id for each row of `logits_SV` (any float type; computed in float32): int64 [S].

    temperature_S1: float32; a row with 0 is greedy, and ties go to the lowest id. None: all rows are greedy,
        and nothing else is read.
    seeds_S, positions_S: int64, the counter of the noise; a position is the number of tokens before the new.
    top: top-k, then top-p of what is left, as Hugging Face's TopKLogitsWarper and TopPLogitsWarper do but for
        ties. None: no row uses them.
    min_p_S1: float32, as in MinPLogitsWarper; 0 cuts nothing. None: no row uses it.
    """
    scores_SV = logits_SV.float().nan_to_num(nan=-math.inf, neginf=-math.inf)
    if temperature_S1 is None:
        return scores_SV.argmax(-1)
    assert seeds_S is not None
    assert positions_S is not None
    cut_(scores_SV, temperature_S1, top, min_p_S1)
    noise_SV = gumbel_noise(seeds_S, positions_S, logits_SV.shape[-1])
    return noise_SV.mul_(temperature_S1).add_(scores_SV).argmax(-1)


def penalise(
    logits_PV: Tensor,
    *,
    repetition_P1: Tensor,
    presence_P1: Tensor,
    frequency_P1: Tensor,
    in_prompt_PV: Tensor,
    num_in_output_PV: Tensor,
) -> Tensor:
    """float32 [P, V]: repetition, then frequency and presence penalties, for tokens already used.

    Repetition (Keskar et al., arXiv 1909.05858) divides positive and multiplies negative logits of tokens in
    prompt (bool) or output (counts); the others subtract once a use, and once, for tokens in the output.
    """
    logits_PV = logits_PV.float()
    in_output_PV = num_in_output_PV > 0
    repeated_PV = torch.where(logits_PV > 0, logits_PV / repetition_P1, logits_PV * repetition_P1)
    scores_PV = torch.where(in_prompt_PV | in_output_PV, repeated_PV, logits_PV)
    return scores_PV.sub_(frequency_P1 * num_in_output_PV).sub_(presence_P1 * in_output_PV)


def cut_(scores_SV: Tensor, temperature_S1: Tensor, top: TopCut | None, min_p_S1: Tensor | None) -> None:
    """Set to -inf, in place, what top-k, top-p and min-p leave out; the likeliest token always stays."""
    floor_S1 = None
    if min_p_S1 is not None:  # p >= min_p * p_max, in logarithms
        floor_S1 = scores_SV.amax(-1, keepdim=True) + temperature_S1 * min_p_S1.log()
    if top is not None:
        scores_CV = scores_SV.index_select(0, top.places_C)
        scores_CV.masked_fill_(scores_CV < _top_floor(scores_CV, top), -math.inf)
        scores_SV.index_copy_(0, top.places_C, scores_CV)
    if floor_S1 is not None:  # NaN where greedy (0 * log 0), and then nothing is cut
        scores_SV.masked_fill_(scores_SV < floor_S1, -math.inf)


def _top_floor(scores_CV: Tensor, top: TopCut) -> Tensor:
    """The least score that stays, [C, 1].

    A token stays while the mass of the likelier ones is below top_p of the whole. Masses are fixed-point
    integers, whose sums are exact in any order: a parallel float sum would depend on the number of rows.
    """
    if top.num_candidates < scores_CV.shape[-1]:
        best_CK, order_CK = scores_CV.topk(top.num_candidates)
    else:
        best_CK, order_CK = scores_CV.sort(descending=True)
    kth_C1 = best_CK.gather(-1, top.top_k_C1 - 1)
    largest_C1 = best_CK[:, :1].clamp(min=torch.finfo(torch.float32).min)  # -inf - -inf would be NaN
    mass_CV = ((scores_CV - largest_C1) / top.temperature_C1).exp_().mul_(MASS_SCALE).long()
    mass_CV.masked_fill_(scores_CV < kth_C1, 0)
    mass_CK = mass_CV.gather(-1, order_CK)
    likelier_CK = mass_CK.cumsum(-1).sub_(mass_CK)
    limit_C1 = mass_CV.sum(-1, keepdim=True).double() * top.top_p_C1
    limit_C1.masked_fill_(top.top_p_C1 >= 1, math.inf)
    num_kept_C1 = (likelier_CK.double() < limit_C1).sum(-1, keepdim=True).clamp_(min=1)
    return torch.maximum(best_CK.gather(-1, num_kept_C1 - 1), kth_C1)


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
