"""The op `merge`: a step's partial results over two and eight parts of every context, beside PyTorch's."""

from collections.abc import Mapping
from functools import partial

import torch

from headway.bench.contest import Contender
from headway.bench.ops.case import Case
from headway_kernels import gpu, reference

NUM_HEADS, HEAD_DIM = 32, 128
ITEMSIZE = 4  # of float32


def _contenders(num_parts: int, num_tokens: int) -> Mapping[str, Contender]:
    parts = torch.randn(num_parts, num_tokens, NUM_HEADS, HEAD_DIM, device="cuda")
    lse = torch.randn(num_parts, num_tokens, NUM_HEADS, device="cuda")
    return {"ours": partial(gpu.merge, parts, lse), "PyTorch": partial(reference.merge, parts, lse)}


CASES = tuple(
    Case(
        op="merge",
        shape=f"{num_parts} parts, {num_tokens} x {NUM_HEADS} heads of {HEAD_DIM}",
        num_bytes=(num_parts + 1) * num_tokens * NUM_HEADS * (HEAD_DIM + 1) * ITEMSIZE,
        contenders=partial(_contenders, num_parts, num_tokens),
    )
    for num_parts in (2, 8)
    for num_tokens in (1, 64, 1024)
)
