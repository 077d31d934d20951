"""An engine loop whose ranks can be held back and made to fail, and a listener that can be waited for."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue

from checkpoints import Oracle
from headway.core.config import EngineConfig
from headway.core.request import Load, TokenEvent
from headway.core.step import StepPlan, StepResult
from headway.engine.build import build_engine
from headway.engine.engine import Engine
from headway.engine.local import SoloRanks
from headway.engine.loop import EngineLoop
from headway.model.collectives import SoloCollectives
from headway.worker.shard import Shard, pick_device

PROMPT = (5, 6, 7, 8, 9)
NUM_PAGES = 32
WAIT_S = 30.0  # only ever waited out by a failure
CONFIG = EngineConfig(device="cpu", page_size=4, num_pages=NUM_PAGES, max_num_rows=8, max_num_tokens=32)


class Planted(RuntimeError):
    """A bug of ours, as far as the engine can tell."""


@dataclass
class HeldRanks:
    """A real rank; where `held`, each launch waits for one `let`. `fault` is raised by the next launch.

    launching: released once by each launch that has begun.
    """

    inner: SoloRanks
    held: bool = False
    fault: Exception | None = None
    num_launched: int = 0
    num_closed: int = 0
    launching: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def let(self, num_steps: int = 1) -> None:
        self.permits.release(num_steps)

    def wait_for_launch(self, num_launches: int = 1) -> None:
        for _ in range(num_launches):
            assert self.launching.acquire(timeout=WAIT_S)

    def launch(self, plan: StepPlan) -> None:
        self.launching.release()
        if self.held:
            assert self.permits.acquire(timeout=WAIT_S)
        self.num_launched += 1
        if self.fault is not None:
            raise self.fault
        self.inner.launch(plan)

    def collect(self) -> StepResult:
        return self.inner.collect()

    def close(self) -> None:
        self.num_closed += 1
        self.inner.close()


@dataclass
class Listener:
    """Everything the loop has told, in its order."""

    events: list[TokenEvent] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, events: Sequence[TokenEvent], load: Load) -> None:
        with self.changed:
            self.events += events
            self.loads.append(load)
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_S), self.events

    def of(self, name: str) -> list[TokenEvent]:
        return [event for event in self.events if event.request_id == name]

    def wait_for_end(self, *names: str) -> None:
        self.wait(lambda: all(any(event.terminal for event in self.of(name)) for name in names))


@dataclass
class Setting:
    loop: EngineLoop
    ranks: HeldRanks
    listener: Listener
    ended: SimpleQueue[tuple[str, str | None]]  # on_end's calls: the thread's name, and what failed
    engine: Engine
    now: list[float]  # the loop's clock


@contextmanager
def setting(oracle: Oracle, *, held: bool = False) -> Iterator[Setting]:
    shard = Shard(oracle.folder, CONFIG, SoloCollectives(), pick_device("cpu"))
    ranks = HeldRanks(SoloRanks(shard.ready((NUM_PAGES,))), held=held)
    ended = SimpleQueue[tuple[str, str | None]]()
    engine = build_engine(shard, ranks, (NUM_PAGES,))
    now = [0.0]
    loop = EngineLoop(
        engine,
        on_end=lambda failure: ended.put((threading.current_thread().name, failure)),
        clock=lambda: now[0],
    )
    listener = Listener()
    loop.set_listener(listener)
    try:
        yield Setting(loop, ranks, listener, ended, engine, now)
    finally:
        ranks.let(1000)
        loop.stop()


# What comes in
