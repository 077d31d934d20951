"""What the sampling kernels are held to: the reference's tokens and cuts, but for a logarithm's last bits.

Shape suffixes: S rows, V vocabulary, C rows with top-k or top-p.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headway_kernels import reference
from headway_kernels.reference_noise import gumbel_noise
from headway_kernels.reference_sample import TopCut

CLOSE = 1e-5  # relative, of noise and of masses: several units in the last place of float32


def column(values: list[float], device: str = "cpu") -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]


def top_cut(rows: dict[int, tuple[float, int, float]], num_tokens: int, device: str = "cpu") -> TopCut:
    """rows: (temperature, top_k, top_p) by place; 0 is no top-k."""
    temperature, top_k, top_p = zip(*rows.values(), strict=True)
    top_k = tuple(min(k or num_tokens, num_tokens) for k in top_k)
    return TopCut(
        places_C=torch.tensor(list(rows), device=device),
        temperature_C1=column(list(temperature), device),
        top_k_C1=torch.tensor(top_k, device=device)[:, None],
        top_p_C1=column(list(top_p), device),
        num_candidates=max(top_k),
    )


def check_floors(
    floors: Callable[..., Tensor],
    logits_SV: Tensor,
    temperature_S1: Tensor,
    top: TopCut | None,
    min_p_S1: Tensor | None,
    **options: Any,
) -> None:
    """Each row's floor leaves what the reference leaves, or differs where two masses are all but equal."""
    arguments = {"temperature_S1": temperature_S1, "top": top, "min_p_S1": min_p_S1}
    found_S1 = floors(logits_SV, **arguments, **options)
    expected_S1 = reference.floors(logits_SV, **arguments)
    assert expected_S1 is not None
    scores_SV = logits_SV.float().nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    same_S = ((scores_SV >= found_S1) == (scores_SV >= expected_S1)).all(1)
    for row in (~same_S).nonzero()[:, 0].tolist():
        assert _at_the_border(
            scores_SV[row], float(found_S1[row]), float(expected_S1[row]), row, arguments
        ), f"row {row}: floor {float(found_S1[row])}, expected {float(expected_S1[row])}"


def _at_the_border(
    scores_V: Tensor, found: float, expected: float, row: int, arguments: dict[str, Any]
) -> bool:
    """Whether what one floor leaves and the other does not lies at the limit of top-p or min-p."""
    low, high = min(found, expected), max(found, expected)
    temperature = float(arguments["temperature_S1"][row])
    if arguments["min_p_S1"] is not None and high - low <= CLOSE * max(temperature, abs(high)):
        return True
    top = arguments["top"]
    at = (top.places_C == row).nonzero() if top is not None else ()
    if not len(at):
        return False
    index = int(at[0])
    scores_V = scores_V.double()
    kth = scores_V.sort(descending=True).values[int(top.top_k_C1[index]) - 1]
    mass_V = ((scores_V - scores_V.max()) / float(top.temperature_C1[index])).exp().where(scores_V >= kth, 0)
    limit = float(top.top_p_C1[index]) * mass_V.sum()
    above = mass_V[scores_V >= high].sum()  # with what lies between, the two floors part here
    return low >= kth and bool((above - limit).abs() <= CLOSE * limit)


def check_tokens(
    logits_SV: Tensor,
    tokens_S: Tensor,
    temperature_S1: Tensor,
    seeds_S: Tensor,
    positions_S: Tensor,
    floor_S1: Tensor | None = None,
) -> None:
    """Each token is the reference's, or another whose value is as good up to the last bits of the noise."""
    scores_SV = logits_SV.float().nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    if floor_S1 is not None:
        scores_SV = scores_SV.masked_fill(scores_SV < floor_S1, -torch.inf)
    noise_SV = gumbel_noise(seeds_S, positions_S, logits_SV.shape[1])
    values_SV = noise_SV * temperature_S1 + scores_SV
    expected_S = values_SV.argmax(1)
    found_S1, best_S1 = values_SV.gather(1, tokens_S[:, None]), values_SV.amax(1, keepdim=True)
    close_S1 = CLOSE * (best_S1.abs() + 17 * temperature_S1)
    good_S = (tokens_S == expected_S) | ((temperature_S1 > 0) & (found_S1 >= best_S1 - close_S1))[:, 0]
    assert good_S.all(), f"rows {(~good_S).nonzero()[:, 0].tolist()} got other tokens"
