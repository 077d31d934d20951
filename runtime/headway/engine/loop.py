"""The engine on a thread of its own: requests and aborts come in from anywhere, events go to a listener.

Idle, the thread sleeps on a condition: no polling.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

from headway.core.errors import HeadwayError, ReplicaUnavailable
from headway.core.request import EngineRequest, Listener, ReplicaInfo, TokenEvent
from headway.engine.engine import Engine

CHECK_INTERVAL_S = 5.0  # at least, from one look through the books to the next
STOPPING = "the replica is stopping"


class EngineLoop:
    """Thread-safe. A request that the engine refuses ends with an event that carries the refusal."""

    def __init__(
        self,
        engine: Engine,
        on_end: Callable[[str | None], None] = lambda failure: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_end: called once, from the loop's thread, after the engine has closed, with what failed if
        something did.
        """
        self._engine = engine
        self._on_end = on_end
        self._clock = clock
        self._next_check = clock()
        self._listener: Listener = lambda events, load: None
        self._inbox: deque[EngineRequest | str] = deque()  # requests to submit, ids to abort
        self._changed = threading.Condition()
        self._stopping = False
        self._lost: HeadwayError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ReplicaInfo:
        return self._engine.info

    def set_listener(self, listener: Listener) -> None:
        self._listener = listener

    def submit(self, request: EngineRequest) -> None:
        """Raises ReplicaUnavailable once the loop is stopping."""
        self._put(request)

    def abort(self, request_id: str) -> None:
        """Unknown and ended ids are ignored: the end may be on its way already."""
        if not self._stopping and self._engine.failure is None:
            self._put(request_id)

    def stop(self) -> None:
        """Finish the running step, end what is left with a retryable error, close the engine. Safe twice."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def lose(self, error: HeadwayError) -> None:
        """A rank is gone: end as after a failed step, also when no step is due. No effect once stopping."""
        with self._changed:
            self._lost = error
            self._changed.notify()

    def _put(self, item: EngineRequest | str) -> None:
        with self._changed:
            if self._stopping or self._engine.failure is not None:
                raise ReplicaUnavailable(str(self._engine.failure or STOPPING))
            self._inbox.append(item)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._engine.failure is None and self._wait():
                if self._lost is not None:
                    self._engine.fail("gang", self._lost)
                    break
                events = self._receive()
                events += self._engine.step()
                self._listener(events, self._engine.load)
                self._check()
        except Exception as error:
            self._engine.fail("step loop", error)
        finally:
            self._end()

    def _check(self) -> None:
        """Look through the books when the work has run out; seldom, as that looks at every page."""
        if self._engine.has_work or self._clock() < self._next_check:
            return
        self._next_check = self._clock() + CHECK_INTERVAL_S
        try:
            self._engine.check()
        except HeadwayError as error:
            self._engine.fail("page check", error)

    def _end(self) -> None:
        """Nothing gets in any more, and nobody is left to wait for ever, whatever fails here."""
        with self._changed:
            self._stopping = True
        failure = self._engine.failure
        with ExitStack() as stack:
            stack.callback(self._on_end, str(failure) if failure else None)
            stack.callback(self._engine.close)
            self._tell_the_rest(failure or ReplicaUnavailable(STOPPING))

    def _tell_the_rest(self, error: HeadwayError) -> None:
        requests = [item for item in self._inbox if not isinstance(item, str)]
        events = [TokenEvent.failed(request.request_id, error) for request in requests]
        try:
            events = [*self._engine.drop_all(error), *events]
        finally:
            self._listener(events, self._engine.load)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False once it is to stop."""
        with self._changed:
            while not (self._stopping or self._lost or self._inbox or self._engine.has_work):
                self._changed.wait()
            return not self._stopping

    def _receive(self) -> list[TokenEvent]:
        """Take in what has come since the last step."""
        events: list[TokenEvent] = []
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, str):
                end = self._engine.abort(item)
                events += [end] if end else []
                continue
            try:
                self._engine.submit(item)
            except HeadwayError as error:
                events.append(TokenEvent.failed(item.request_id, error))
        return events
