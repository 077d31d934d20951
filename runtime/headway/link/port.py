"""What the replica end of the link is handed: an engine on its own thread."""

from typing import Protocol

from headway.core.request import EngineRequest, Listener, ReplicaInfo


class EnginePort(Protocol):
    """Thread-safe; no method waits for a step."""

    @property
    def info(self) -> ReplicaInfo: ...

    def submit(self, request: EngineRequest) -> None:
        """Queue `request`. Raises InvalidRequest, Overloaded or ReplicaUnavailable; then no event follows."""

    def abort(self, request_id: str) -> None:
        """End a request; the event of its end tells how many pages are free after the running step.

        Unknown and ended ids are ignored.
        """

    def set_listener(self, listener: Listener) -> None:
        """Call `listener` after each step, from the engine's thread, with the events of that step.

        It returns at once and does not raise.
        """
