"""Time spent in one part of a step, measured by standing in its place."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any


class Stopwatch:
    """Calls what it is given and adds up the seconds that takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def microseconds(samples: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile of `samples` (seconds), in microseconds."""
    ordered = sorted(samples)
    return {"p50_us": 1e6 * median(ordered), "p99_us": 1e6 * ordered[int(0.99 * (len(ordered) - 1))]}
