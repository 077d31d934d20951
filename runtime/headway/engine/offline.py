"""An engine that its caller drives: no thread, no network. `headway.LLM` with one rank uses it."""

import torch

from headway.core.errors import HeadwayError
from headway.core.request import EngineRequest, ReplicaInfo, TokenEvent
from headway.engine.engine import Engine


class OfflineReplica:
    """The offline end of the link (`headway.link.sync_client`), without a link."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._refused: list[TokenEvent] = []

    @property
    def info(self) -> ReplicaInfo:
        return self._engine.info

    def submit(self, request: EngineRequest) -> None:
        """A refusal comes back as the request's terminal event."""
        try:
            self._engine.submit(request)
        except HeadwayError as error:
            self._refused.append(TokenEvent.failed(request.request_id, error))

    def abort(self, request_id: str) -> None:
        self._engine.abort(request_id)

    def next_events(self) -> list[TokenEvent]:
        """One step, and what it did."""
        events, self._refused = self._refused, []
        return events + self._engine.step()

    def close(self) -> None:
        self._engine.close()


def release_memory() -> None:
    """Hand back to the GPU what torch keeps of tensors that are gone: the next model counts what is free."""
    torch.cuda.empty_cache()  # nothing, where CUDA has not been used
