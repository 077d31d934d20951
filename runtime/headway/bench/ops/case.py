"""What a benchmark of one operation tells the runner: a file an operation beside this one has its cases."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headway.bench.contest import Contender


@dataclass(frozen=True, kw_only=True)
class Case:
    """An operation at one shape.

    num_bytes: the least that it must move, each input read once and each output written once.
    contenders: makes the inputs on the GPU and returns what is timed, "ours" among them, by name.
    num_runs: how often a contender does it in one call: over as many inputs where caches must stay cold.
    """

    op: str
    shape: str
    num_bytes: int
    contenders: Callable[[], Mapping[str, Contender]]
    num_runs: int = 1
