"""SIGINT and SIGTERM, from before Ray is started until it is gone: noted, and told to whoever waits."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While it is entered, SIGINT and SIGTERM end nothing by themselves, however often they come.

    `listen` takes them back from whoever has set handlers of its own meanwhile, as Ray does when it starts.
    """

    def __init__(self) -> None:
        self.asked = False
        self._tell: Callable[[], object] = lambda: None
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._tell()

    @contextmanager
    def event(self) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set once a signal has come, be it before."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        self._tell = lambda: loop.call_soon_threadsafe(stopped.set)
        if self.asked:
            stopped.set()
        try:
            yield stopped
        finally:
            self._tell = lambda: None

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


async def until(stopped: asyncio.Event, work: Awaitable[Result]) -> Result | None:
    """What `work` gives; None if `stopped` is set first, `work` then being cancelled and awaited."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return None if stopped.is_set() else working.result()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
