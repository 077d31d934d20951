"""The op `penalise_`: repetition, presence and frequency penalties in place, beside PyTorch's."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from headway.bench.contest import Contender
from headway.bench.ops.case import Case
from headway_kernels import gpu, reference

NUM_TOKENS = 128_256


def _contenders(num_rows: int) -> Mapping[str, Contender]:
    ones = torch.ones(num_rows, 1, device="cuda")
    options: dict[str, Any] = {
        "places_P": torch.arange(num_rows, device="cuda"),
        "rows_P": torch.arange(num_rows, device="cuda"),
        "repetition_P1": ones * 1.1,
        "presence_P1": ones * 0.0,
        "frequency_P1": ones * 0.0,
        "in_prompt_RV": torch.rand(num_rows, NUM_TOKENS, device="cuda") < 0.01,
        "num_in_output_RV": torch.zeros(num_rows, NUM_TOKENS, dtype=torch.int32, device="cuda"),
    }
    ours, theirs = (torch.randn(num_rows, NUM_TOKENS, device="cuda") for _ in range(2))
    return {
        "ours": partial(gpu.penalise_, ours, **options),
        "PyTorch": partial(reference.penalise_, theirs, **options),
    }


CASES = tuple(
    Case(
        op="penalise_",
        shape=f"{num_rows} x {NUM_TOKENS}",
        num_bytes=num_rows * NUM_TOKENS * (2 * 4 + 1 + 4),
        contenders=partial(_contenders, num_rows),
    )
    for num_rows in (1, 64)
)
