"""SIGINT and SIGTERM, from before Ray is started until it is gone: noted, and told to whoever waits."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from headway.cluster.session import RaySession

Result = TypeVar("Result")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While it is entered, SIGINT and SIGTERM end nothing by themselves, however often they come."""

    def __init__(self) -> None:
        self.asked = False
        self._tell: Callable[[], object] = lambda: None
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def over(self, session: "RaySession") -> Iterator["RaySession"]:
        """A connection to Ray, closed at the end. Ray has handlers of its own when it starts, and as it shuts
        down none at all: the signals are taken back, again and again while it does.
        """
        self._listen()
        try:
            yield session
        finally:
            closing = threading.Thread(target=session.close, name="close-ray")
            closing.start()
            while closing.is_alive():
                self._listen()
                closing.join(0.01)

    def _listen(self) -> None:
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
        self._listen()
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
