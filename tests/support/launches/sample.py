"""`sample` and its parts, at real vocabularies."""

from functools import partial
from typing import Any

import torch

from headway_kernels.log_softmax import log_softmax
from headway_kernels.penalise import penalise_
from headway_kernels.reference_sample import TopCut
from headway_kernels.sample import sample, sample_shard
from headway_kernels.sample_floors import floors
from launches import Launch

NUM_TOKENS = 128_256


def _logits(device: str, num_rows: int, num_tokens: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(num_rows, num_tokens, device=device) * 3).to(dtype)


def _noise(device: str, num_rows: int) -> dict[str, torch.Tensor]:
    return {
        "temperature_S1": torch.linspace(0, 2, num_rows, device=device)[:, None],
        "seeds_S": torch.arange(num_rows, device=device),
        "positions_S": torch.arange(num_rows, device=device) * 100,
    }


def _top(device: str, num_rows: int, num_tokens: int) -> TopCut:
    """Rows in turns cut by top-k, by top-p, and by both."""
    index = torch.arange(num_rows, device=device)[:, None]
    return TopCut(
        places_C=index[:, 0].flip(0),
        temperature_C1=torch.linspace(0.5, 2, num_rows, device=device)[:, None],
        top_k_C1=torch.where(index % 3 == 0, num_tokens, 50),
        top_p_C1=torch.where(index % 3 == 1, 1.0, 0.9),
        num_candidates=num_tokens,
    )


def _sample(
    device: str,
    *,
    num_rows: int = 4,
    num_tokens: int = NUM_TOKENS,
    dtype: torch.dtype = torch.bfloat16,
    cut: bool = False,
) -> Launch:
    logits = _logits(device, num_rows, num_tokens, dtype)
    options: dict[str, Any] = _noise(device, num_rows)
    if cut:
        options["top"] = _top(device, num_rows, num_tokens)
        options["min_p_S1"] = torch.full((num_rows, 1), 0.01, device=device)
    return lambda: sample(logits, **options)


def _greedy(device: str) -> Launch:
    logits = _logits(device, 4, NUM_TOKENS, torch.bfloat16)
    return lambda: sample(logits)


def _shard(device: str) -> Launch:
    logits = _logits(device, 64, 16_032, torch.bfloat16)
    floor = torch.zeros(64, 1, device=device)
    return lambda: sample_shard(logits, first_token=32_064, floor_S1=floor, **_noise(device, 64))


def _floors(device: str) -> Launch:
    logits, top = _logits(device, 16, NUM_TOKENS, torch.bfloat16), _top(device, 16, NUM_TOKENS)
    temperature = torch.ones(16, 1, device=device)
    return lambda: floors(logits, temperature_S1=temperature, top=top)


def _penalise(device: str) -> Launch:
    logits = _logits(device, 3, NUM_TOKENS, torch.float32)
    in_prompt = torch.rand(8, NUM_TOKENS, device=device) < 0.01
    num_in_output = torch.randint(3, (8, NUM_TOKENS), dtype=torch.int32, device=device)
    columns = [torch.tensor([[1.3], [0.8]], device=device) for _ in range(3)]
    places, rows = torch.tensor([2, 0], device=device), torch.tensor([7, 3], device=device)

    def launch() -> torch.Tensor:
        scores = logits.clone()
        penalise_(
            scores,
            places_P=places,
            rows_P=rows,
            repetition_P1=columns[0],
            presence_P1=columns[1],
            frequency_P1=columns[2],
            in_prompt_RV=in_prompt,
            num_in_output_RV=num_in_output,
        )
        return scores

    return launch


def _log_softmax(device: str) -> Launch:
    logits, places = _logits(device, 8, NUM_TOKENS, torch.bfloat16), torch.tensor([5, 0], device=device)
    return lambda: log_softmax(logits, places)


LAUNCHES = {
    "greedy": _greedy,
    "noise": _sample,
    "noise, many rows of float32": partial(_sample, num_rows=64, dtype=torch.float32),
    "cuts, an odd vocabulary of float16": partial(_sample, num_tokens=50_257, dtype=torch.float16, cut=True),
    "a shard": _shard,
    "floors": _floors,
    "penalties": _penalise,
    "log-probabilities": _log_softmax,
}
