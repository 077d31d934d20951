"""The op `sample`: greedy, random, and cut by top-k and top-p, beside the reference on the same GPU.

Logits lie in the L2 cache as far as they fit, as they do behind the head's product in a step.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from headway.bench.contest import Contender
from headway.bench.ops.case import Case
from headway_kernels import reference
from headway_kernels.reference_sample import TopCut

NUM_TOKENS = 128_256
NUM_ROWS = (1, 64, 256)


def _contenders(num_rows: int, kind: str) -> Mapping[str, Contender]:
    from headway_kernels import gpu

    logits = (torch.randn(num_rows, NUM_TOKENS, device="cuda") * 3).bfloat16()
    options = _options(num_rows, kind)
    return {
        "ours": partial(gpu.sample, logits, **options),
        "reference": partial(reference.sample, logits, **options),
    }


def _options(num_rows: int, kind: str) -> dict[str, Any]:
    if kind == "greedy":
        return {}
    ones = torch.ones(num_rows, 1, device="cuda")
    options = {
        "temperature_S1": ones,
        "seeds_S": torch.arange(num_rows, device="cuda"),
        "positions_S": torch.arange(num_rows, device="cuda"),
    }
    if kind == "random":
        return options
    top_k = 50 if "top-k" in kind else NUM_TOKENS
    top = TopCut(
        places_C=torch.arange(num_rows, device="cuda"),
        temperature_C1=ones,
        top_k_C1=torch.full((num_rows, 1), top_k, device="cuda"),
        top_p_C1=ones * 0.9,
        num_candidates=top_k,
    )
    return options | {"top": top}


CASES = tuple(
    Case(
        op="sample",
        shape=f"{kind}, {num_rows} x {NUM_TOKENS}",
        num_bytes=num_rows * (2 * NUM_TOKENS + 8),
        contenders=partial(_contenders, num_rows, kind),
    )
    for kind in ("greedy", "random", "top-k 50, top-p 0.9", "top-p 0.9")
    for num_rows in NUM_ROWS
)
