"""The part of `headway_kernels.reference` that comes last: from logits to one token a row.

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

    S  sampled rows    V  vocabulary, or a shard of it    P  penalised rows    C  rows with top-k or top-p
    K  candidates      L  rows with logprobs               R  rows of the batch tables, or ranks
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from headway_kernels.reference_noise import gumbel_noise

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
    scores_SV = _scores(logits_SV)
    if temperature_S1 is None:
        return scores_SV.argmax(-1)
    assert seeds_S is not None
    assert positions_S is not None
    cut_(scores_SV, temperature_S1, top, min_p_S1)
    return _noisy(scores_SV, temperature_S1, seeds_S, positions_S, 0).argmax(-1)


def sample_shard(
    logits_SV: Tensor,
    *,
    first_token: int,
    temperature_S1: Tensor | None = None,
    seeds_S: Tensor | None = None,
    positions_S: Tensor | None = None,
    floor_S1: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The best token of a shard of the vocabulary, whose ids begin at `first_token` -> (values_S, ids_S).

    `choose` among the shards gives what `sample` gives for the whole row. floor_S1: what `floors` says of the
    whole row; a shard alone cannot know it. Other arguments as in `sample`. values_S: float32. A shard
    without tokens has -inf and `first_token`.
    """
    scores_SV = _scores(logits_SV)
    if not scores_SV.shape[-1]:
        ids_S = torch.full((len(scores_SV),), first_token, device=scores_SV.device)
        return scores_SV.new_full((len(scores_SV),), -math.inf), ids_S
    if temperature_S1 is not None:
        assert seeds_S is not None
        assert positions_S is not None
        if floor_S1 is not None:
            scores_SV.masked_fill_(scores_SV < floor_S1, -math.inf)
        scores_SV = _noisy(scores_SV, temperature_S1, seeds_S, positions_S, first_token)
    ids_S1 = scores_SV.argmax(-1, keepdim=True)  # the lowest of several, which max(-1) does not promise
    return scores_SV.gather(-1, ids_S1)[:, 0], ids_S1[:, 0] + first_token


def choose(values_RS: Tensor, ids_RS: Tensor) -> Tensor:
    """The id of the greatest value of each column, the lowest id among equals -> int64 [S].

    What `sample_shard` gave on each of R ranks, stacked in any order.
    """
    among_RS = values_RS == values_RS.amax(0)
    return ids_RS.where(among_RS, torch.iinfo(torch.int64).max).amin(0)


def penalise_(
    logits_SV: Tensor,
    *,
    places_P: Tensor,
    rows_P: Tensor,
    repetition_P1: Tensor,
    presence_P1: Tensor,
    frequency_P1: Tensor,
    in_prompt_RV: Tensor,
    num_in_output_RV: Tensor,
) -> None:
    """`penalise` in place, for `places_P` of a batch's logits (float32), by `rows_P` of the batch tables.

    places_P: int64, each place once. in_prompt_RV: bool. num_in_output_RV: int32.
    """
    scores_PV = penalise(
        logits_SV.index_select(0, places_P),
        repetition_P1=repetition_P1,
        presence_P1=presence_P1,
        frequency_P1=frequency_P1,
        in_prompt_PV=in_prompt_RV.index_select(0, rows_P),
        num_in_output_PV=num_in_output_RV.index_select(0, rows_P),
    )
    logits_SV.index_copy_(0, places_P, scores_PV)


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


def log_softmax(logits_SV: Tensor, places_L: Tensor) -> Tensor:
    """float32 [L, V]: natural logarithms of the softmax of the rows at `places_L` (int64).

    A NaN logit counts as -inf; a row without any other is -inf throughout.
    """
    logprobs_LV = _scores(logits_SV.index_select(0, places_L)).log_softmax(-1)
    return logprobs_LV.nan_to_num_(nan=-math.inf, neginf=-math.inf)


def cut_(scores_SV: Tensor, temperature_S1: Tensor, top: TopCut | None, min_p_S1: Tensor | None) -> None:
    """Set to -inf, in place, what top-k, top-p and min-p leave out; the likeliest token always stays."""
    floor_S1 = _floors(scores_SV, temperature_S1, top, min_p_S1)
    if floor_S1 is not None:
        scores_SV.masked_fill_(scores_SV < floor_S1, -math.inf)


def floors(
    logits_SV: Tensor, *, temperature_S1: Tensor, top: TopCut | None = None, min_p_S1: Tensor | None = None
) -> Tensor | None:
    """The least score of each row that `top` and `min_p_S1` leave, float32 [S, 1]; -inf where none is cut.

    Arguments as in `sample`, the whole vocabulary. None: there are no cuts.
    """
    return _floors(_scores(logits_SV), temperature_S1, top, min_p_S1)


def _floors(
    scores_SV: Tensor, temperature_S1: Tensor, top: TopCut | None, min_p_S1: Tensor | None
) -> Tensor | None:
    floor_S1 = None
    if (
        min_p_S1 is not None
    ):  # p >= min_p * p_max, in logarithms; NaN where greedy (0 * log 0): nothing is cut
        floor_S1 = scores_SV.amax(-1, keepdim=True) + temperature_S1 * min_p_S1.log()
        floor_S1.nan_to_num_(nan=-math.inf, neginf=-math.inf)
    if top is not None:
        top_C1 = _top_floor(scores_SV.index_select(0, top.places_C), top)
        top_S1 = torch.full_like(temperature_S1, -math.inf).index_copy_(0, top.places_C, top_C1)
        floor_S1 = top_S1 if floor_S1 is None else floor_S1.maximum(top_S1)
    return floor_S1


def _scores(logits_SV: Tensor) -> Tensor:
    """A float32 copy without NaN, and with the greatest number in place of infinity."""
    return logits_SV.float().nan_to_num(nan=-math.inf, neginf=-math.inf)


def _noisy(
    scores_SV: Tensor, temperature_S1: Tensor, seeds_S: Tensor, positions_S: Tensor, first_token: int
) -> Tensor:
    noise_SV = gumbel_noise(seeds_S, positions_S, scores_SV.shape[-1], first_token)
    return noise_SV.mul_(temperature_S1).add_(scores_SV)


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
