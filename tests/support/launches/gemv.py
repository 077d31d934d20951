"""`gemv`: on the vector units and on the matrix units, with rows of every width of load."""

from functools import partial

import torch

from headway_kernels.gemv import gemv
from launches import Launch


def _launch(
    device: str,
    tokens: int,
    outputs: int,
    inputs: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    all_of_it: bool = False,
) -> Launch:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x, weight = random(tokens, inputs), random(outputs, inputs)
    bias, residual = (random(outputs), random(tokens, outputs)) if all_of_it else (None, None)
    return lambda: gemv(x, weight, bias, residual)


LAUNCHES = {
    "1 token": partial(_launch, tokens=1, outputs=4096, inputs=4096),
    "1 token, few rows, bias and residual": partial(
        _launch, tokens=1, outputs=768, inputs=4552, all_of_it=True
    ),
    "1 token, rows of an odd number": partial(_launch, tokens=1, outputs=1025, inputs=1027),
    "4 tokens, rows of 8 bytes": partial(_launch, tokens=4, outputs=3075, inputs=4548),
    "3 tokens, float32": partial(_launch, tokens=3, outputs=1024, inputs=2048, dtype=torch.float32),
    "5 tokens": partial(_launch, tokens=5, outputs=4096, inputs=4096, all_of_it=True),
    "16 tokens, many rows": partial(_launch, tokens=16, outputs=16387, inputs=4548, dtype=torch.float16),
    "16 tokens, float32": partial(_launch, tokens=16, outputs=1024, inputs=1032, dtype=torch.float32),
}
