"""The op `log_softmax`: of some rows of a batch's logits, beside PyTorch's."""

from collections.abc import Mapping
from functools import partial

import torch

from headway.bench.contest import Contender
from headway.bench.ops.case import Case
from headway_kernels import gpu, reference

NUM_TOKENS = 128_256


def _contenders(num_rows: int) -> Mapping[str, Contender]:
    logits = (torch.randn(num_rows, NUM_TOKENS, device="cuda") * 3).bfloat16()
    places = torch.arange(num_rows, device="cuda")
    return {
        "ours": partial(gpu.log_softmax, logits, places),
        "PyTorch": partial(reference.log_softmax, logits, places),
    }


CASES = tuple(
    Case(
        op="log_softmax",
        shape=f"{num_rows} x {NUM_TOKENS}",
        num_bytes=num_rows * NUM_TOKENS * (2 + 4),
        contenders=partial(_contenders, num_rows),
    )
    for num_rows in (1, 64)
)
