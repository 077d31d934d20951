"""Several ways to do one thing on a GPU, timed in turns.

Every contender is a CUDA graph, and the device is kept busy until its replay is queued, so the host's time
is left out. They take turns in alternating order, and the median counts: a device that slows down meanwhile
slows all of them.
"""

from collections.abc import Callable, Mapping
from statistics import median

import torch

Contender = Callable[[], object]
OURS = "ours"  # what the names of our own contenders begin with
BUSY_CYCLES = 100_000  # some 50 microseconds, longer than the host takes to queue a replay


def contest(
    contenders: Mapping[str, Contender], repeats: int, prepare: Contender = lambda: None
) -> dict[str, float]:
    """Median microseconds of each contender that runs here, by name.

    prepare: run before each, and not timed; it may empty the caches.
    """
    graphs = {name: _captured(name, contender) for name, contender in contenders.items()}
    able = {name: graph for name, graph in graphs.items() if graph is not None}
    times: dict[str, list[float]] = {name: [] for name in able}
    for index in range(repeats):
        for name in list(able)[:: 1 if index % 2 else -1]:
            prepare()
            times[name].append(_once(able[name]))
    return {name: median(values) for name, values in times.items()}


def _once(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(BUSY_CYCLES)  # type: ignore[no-untyped-call]
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * float(begin.elapsed_time(end))


def _captured(name: str, contender: Contender) -> torch.cuda.CUDAGraph | None:
    """The contender's graph, replayed once; None where one that is not ours does not take the shape.

    What goes wrong on the device is raised: later contenders would fail of it, too.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        contender()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            contender()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        if name.startswith(OURS) or isinstance(error, torch.AcceleratorError):
            raise
        return None
    return graph
