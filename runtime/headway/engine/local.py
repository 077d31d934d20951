"""Ranks of this process: one rank in the calling thread, or several in threads of their own (tests)."""

import queue
import threading
from collections import deque
from collections.abc import Sequence

from headway.core.errors import ReplicaError
from headway.core.step import StepPlan, StepResult
from headway.engine.ranks import describe_failure
from headway.worker.rank import PendingStep, Rank


class SoloRanks:
    """One rank, run by whoever calls."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._pending: deque[PendingStep] = deque()

    def launch(self, plan: StepPlan) -> None:
        self._pending.append(self._rank.launch(plan))

    def collect(self) -> StepResult:
        return self._pending.popleft().result()

    def close(self) -> None:
        self._rank.close()


class ThreadRanks:
    """Several ranks, a thread each; their collectives meet in this process."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self._ranks = ranks
        self._plans = [queue.SimpleQueue[StepPlan | None]() for _ in ranks]
        self._results = [queue.SimpleQueue[StepResult | Exception]() for _ in ranks]
        self._threads = [
            threading.Thread(target=self._run, args=(index,), name=f"rank-{index}", daemon=True)
            for index in range(len(ranks))
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, index: int) -> None:
        while (plan := self._plans[index].get()) is not None:
            try:
                self._results[index].put(self._ranks[index].launch(plan).result())
            except Exception as error:
                self._results[index].put(error)
                self._ranks[index].close()  # or the others would wait for it

    def launch(self, plan: StepPlan) -> None:
        for plans in self._plans:
            plans.put(plan)

    def collect(self) -> StepResult:
        results = [results.get() for results in self._results]
        failures = {rank: result for rank, result in enumerate(results) if isinstance(result, Exception)}
        if failures:
            text = "; ".join(describe_failure(rank, error) for rank, error in failures.items())
            raise ReplicaError(text) from next(iter(failures.values()))
        first = results[0]
        assert isinstance(first, StepResult)
        if any(result != first for result in results):
            raise ReplicaError(f"ranks sampled different tokens at step {first.step}: {results}")
        return first

    def close(self) -> None:
        for plans in self._plans:
            plans.put(None)
        for thread in self._threads:
            thread.join()
        for rank in self._ranks:
            rank.close()
