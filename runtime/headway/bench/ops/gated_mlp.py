"""`silu_mul` and `gelu_mul` beside PyTorch's two operations.

Every run has rows of its own. Those of a step that decodes are in the L2, as they are when the product before
has just written them; those of a prompt are not.
"""

from collections.abc import Mapping
from functools import partial
from types import ModuleType

import torch

from headway.bench.contest import Contender
from headway.bench.ops.case import Case
from headway_kernels import gpu, reference

NUM_RUNS = 8
ITEMSIZE = 2  # of bfloat16


def _case(op: str, num_rows: int, size: int, **options: str) -> Case:
    """Two halves of each row are read, and one is written."""
    return Case(
        op=op,
        shape=", ".join((f"{num_rows} x {size}", *options.values())),
        num_bytes=3 * num_rows * size * ITEMSIZE,
        contenders=partial(_contenders, op, num_rows, size, options),
        num_runs=NUM_RUNS,
    )


def _contenders(op: str, num_rows: int, size: int, options: Mapping[str, str]) -> Mapping[str, Contender]:
    shape = (num_rows, 2 * size)
    inputs = [torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(NUM_RUNS)]

    def contender(ops: ModuleType) -> Contender:
        return lambda: [getattr(ops, op)(gate_up_T2I, **options) for gate_up_T2I in inputs]

    return {"ours": contender(gpu), "PyTorch": contender(reference)}


CASES = (
    _case("silu_mul", 1, 14_336),
    _case("silu_mul", 64, 14_336),
    _case("silu_mul", 256, 8192),
    _case("silu_mul", 4096, 14_336),
    _case("gelu_mul", 64, 14_336, approximate="tanh"),
)
