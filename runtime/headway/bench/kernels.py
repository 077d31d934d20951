"""Every operation but attention on one GPU: the cases of `bench.ops`, timed in turns with their peers."""

import gc
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch

from headway.bench import ops
from headway.bench.contest import contest
from headway.bench.ops.case import Case
from headway.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class KernelFigures:
    """us: microseconds of each contender, by name. tb_per_s: the least bytes over our time."""

    op: str
    shape: str
    us: dict[str, float]
    tb_per_s: float | None

    @property
    def relative(self) -> float | None:
        """How many times as fast as the best of the others; None where there is nothing to compare."""
        others = [us for name, us in self.us.items() if name != "ours"]
        return min(others) / self.us["ours"] if others and "ours" in self.us else None


def cases(wanted: Sequence[str] | None = None) -> Iterator[Case]:
    """All cases, or those of the operations `wanted`. Raises ConfigError for one that is not there."""
    files = sorted(module.name for module in pkgutil.iter_modules(ops.__path__) if module.name != "case")
    every: list[Case] = [case for file in files for case in import_module(f"{ops.__name__}.{file}").CASES]
    known = sorted({case.op for case in every})
    for name in wanted or ():
        if name not in known:
            raise ConfigError(f"op must be one of {', '.join(known)}, got {name!r}")
    yield from (case for case in every if not wanted or case.op in wanted)


def measure(case: Case, repeats: int) -> KernelFigures:
    """Time `case`; what its inputs took of the GPU is free again afterwards."""
    us = {name: time / case.num_runs for name, time in contest(case.contenders(), repeats).items()}
    gc.collect()
    torch.cuda.empty_cache()
    ours = us.get("ours")
    return KernelFigures(op=case.op, shape=case.shape, us=us, tb_per_s=ours and case.num_bytes / ours / 1e6)
