"""`rms_norm` and `layer_norm` with their residual, and `rms_norm` of heads, beside PyTorch's.

Every run has rows of its own. Those of a step that decodes are in the L2, as they are when the product before
has just written them; those of a prompt are not.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from headway.bench.contest import Contender
from headway.bench.ops.case import Case
from headway_kernels import gpu, reference

EPS = 1e-5
NUM_RUNS = 16
ITEMSIZE = 2  # of bfloat16
WEIGHTS = {"rms_norm": 1, "layer_norm": 2}  # with a bias


def _rows(op: str, num_rows: int, size: int) -> Case:
    """x and the residual are read, their sum and its norm written."""
    return Case(
        op=op,
        shape=f"{num_rows} x {size}, residual",
        num_bytes=(4 * num_rows + WEIGHTS[op]) * size * ITEMSIZE,
        contenders=partial(_of_rows, op, num_rows, size),
        num_runs=NUM_RUNS,
    )


def _heads(num_tokens: int, num_heads: int, head_dim: int) -> Case:
    """Queries are read where they lie, beside half as many keys and values."""
    return Case(
        op="rms_norm",
        shape=f"{num_tokens} x {num_heads} heads of {head_dim}",
        num_bytes=(2 * num_tokens * num_heads + 1) * head_dim * ITEMSIZE,
        contenders=partial(_of_heads, num_tokens, num_heads, head_dim),
        num_runs=NUM_RUNS,
    )


def _of_rows(op: str, num_rows: int, size: int) -> Mapping[str, Contender]:
    weights = [_random(size) for _ in range(WEIGHTS[op])]
    inputs = [(_random(num_rows, size), _random(num_rows, size)) for _ in range(NUM_RUNS)]
    return _contenders(op, [(x_TH, *weights, EPS, residual_TH) for x_TH, residual_TH in inputs])


def _of_heads(num_tokens: int, num_heads: int, head_dim: int) -> Mapping[str, Contender]:
    weight_D = _random(head_dim)
    fused = [_random(num_tokens, num_heads * 3 // 2, head_dim) for _ in range(NUM_RUNS)]
    return _contenders("rms_norm", [(qkv_TXD[:, :num_heads], weight_D, EPS) for qkv_TXD in fused])


def _contenders(op: str, inputs: Sequence[tuple[object, ...]]) -> Mapping[str, Contender]:
    def contender(ops: ModuleType) -> Contender:
        return lambda: [getattr(ops, op)(*arguments) for arguments in inputs]

    return {"ours": contender(gpu), "PyTorch": contender(reference)}


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")


CASES = (
    _rows("rms_norm", 1, 4096),
    _rows("rms_norm", 64, 4096),
    _rows("rms_norm", 4096, 4096),
    _rows("layer_norm", 64, 4544),
    _heads(4096, 32, 128),
)
