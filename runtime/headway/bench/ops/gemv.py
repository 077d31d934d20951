"""`gemv` beside cuBLAS: the matrix products of a decode step of Llama-3.1-8B, few tokens at a time.

"ours" is the kernel itself, whatever the choice in `tiles` says of a size: this is what that is made from.
Each call goes round through a GiB of weights, so that none is found in the L2.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from headway.bench.contest import Contender
from headway.bench.ops.case import Case
from headway_kernels.gemv import gemv

MATRICES = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "head": (128256, 4096),
}
TOKENS = (1, 4, 8, 16)
COLD_BYTES = 1 << 30


def _case(name: str, num_tokens: int) -> Case:
    num_outputs, num_inputs = MATRICES[name]
    weight_bytes = 2 * num_outputs * num_inputs
    num_runs = max(1, COLD_BYTES // weight_bytes)
    return Case(
        op="gemv",
        shape=f"{num_tokens} x {name}, {num_outputs} x {num_inputs}",
        num_bytes=weight_bytes + 2 * num_tokens * (num_inputs + num_outputs),
        contenders=partial(_contenders, num_tokens, num_outputs, num_inputs, num_runs),
        num_runs=num_runs,
    )


def _contenders(num_tokens: int, num_outputs: int, num_inputs: int, num_runs: int) -> Mapping[str, Contender]:
    x_TH = torch.randn(num_tokens, num_inputs, dtype=torch.bfloat16, device="cuda")
    weights: list[Tensor] = [
        torch.randn(num_outputs, num_inputs, dtype=torch.bfloat16, device="cuda") for _ in range(num_runs)
    ]
    return {
        "ours": lambda: [gemv(x_TH, weight_OH) for weight_OH in weights],
        "cuBLAS": lambda: [linear(x_TH, weight_OH) for weight_OH in weights],
    }


CASES = tuple(_case(name, num_tokens) for name in MATRICES for num_tokens in TOKENS)
