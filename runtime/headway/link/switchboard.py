"""Who submitted what: the events of a step are sorted to the streams that wait for them."""

import logging
import threading
from collections.abc import Sequence

from headway.core.errors import DuplicateRequest, HeadwayError
from headway.core.request import EngineRequest, Load, TokenEvent
from headway.link.messages import idle_load
from headway.link.port import EnginePort

log = logging.getLogger(__name__)


class Outbox:
    """What is still to be sent on one stream. Steps gather while its reader is slow, into one message."""

    def __init__(self, load: Load) -> None:
        self._changed = threading.Condition()
        self._events: list[TokenEvent] = []
        self._load = load
        self._fresh = False
        self._ended = False
        self.reason: str | None = None

    def put(self, events: Sequence[TokenEvent], load: Load) -> None:
        with self._changed:
            if self._ended:
                return
            self._events += events
            self._load = load
            self._fresh = True
            self._changed.notify()

    def fail(self, request_id: str, error: HeadwayError) -> None:
        self.put([TokenEvent.failed(request_id, error)], self._load)

    def end(self, reason: str | None = None) -> None:
        """Take nothing more in; `take` gives out what is there. reason: what failed, if something did."""
        with self._changed:
            self._ended = True
            self.reason = self.reason or reason
            self._changed.notify()

    def take(self) -> tuple[list[TokenEvent], Load] | None:
        """Wait for what is to be sent; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._fresh or self._ended)
            if not self._fresh:
                return None
            events, self._events, self._fresh = self._events, [], False
            return events, self._load


class Switchboard:
    """Thread-safe. `port` is never called with the lock held: its thread comes in through `step`."""

    def __init__(self, port: EnginePort) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._outboxes: set[Outbox] = set()
        self._owners: dict[str, Outbox] = {}
        port.set_listener(self.step)

    def open(self) -> Outbox:
        outbox = Outbox(idle_load(self._port.info))
        with self._lock:
            self._outboxes.add(outbox)
        return outbox

    def close(self, outbox: Outbox) -> None:
        """End the stream and abort all that was submitted through it. Safe to call twice."""
        outbox.end()
        with self._lock:
            self._outboxes.discard(outbox)
            orphans = [request_id for request_id, owner in self._owners.items() if owner is outbox]
            for request_id in orphans:
                del self._owners[request_id]
        for request_id in orphans:
            self._port.abort(request_id)

    def end(self, reason: str | None) -> None:
        """End every stream once what is on its way has been sent."""
        with self._lock:
            outboxes = list(self._outboxes)
        for outbox in outboxes:
            outbox.end(reason)

    def submit(self, outbox: Outbox, request: EngineRequest) -> None:
        """Hand `request` to the engine; a refusal comes back as its terminal event."""
        with self._lock:
            if outbox not in self._outboxes:
                return
            duplicate = request.request_id in self._owners
            if not duplicate:
                self._owners[request.request_id] = outbox
        if duplicate:
            outbox.fail(request.request_id, DuplicateRequest(f"request_id {request.request_id!r} is in use"))
            return
        try:
            self._port.submit(request)
        except HeadwayError as error:
            self._refuse(request.request_id, error)
        except Exception:
            log.exception("submit failed")
            self._refuse(request.request_id, HeadwayError("internal error; see the replica's log"))
        if not self._owns(outbox, request.request_id):  # closed meanwhile, or already ended: no harm then
            self._port.abort(request.request_id)

    def abort(self, outbox: Outbox, request_id: str) -> None:
        if self._owns(outbox, request_id):
            self._port.abort(request_id)

    def step(self, events: Sequence[TokenEvent], load: Load) -> None:
        """The engine's listener."""
        with self._lock:
            sorted_events: dict[Outbox, list[TokenEvent]] = {outbox: [] for outbox in self._outboxes}
            for event in events:
                owner = self._owners.get(event.request_id)
                if owner is not None:
                    sorted_events[owner].append(event)
                    if event.terminal:
                        del self._owners[event.request_id]
        for outbox, its_events in sorted_events.items():
            outbox.put(its_events, load)

    def _owns(self, outbox: Outbox, request_id: str) -> bool:
        with self._lock:
            return self._owners.get(request_id) is outbox

    def _refuse(self, request_id: str, error: HeadwayError) -> None:
        with self._lock:
            owner = self._owners.pop(request_id, None)
        if owner is not None:
            owner.fail(request_id, error)
