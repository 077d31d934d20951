"""What one reader is still to get of one request."""

import asyncio
from collections.abc import AsyncIterator

from headway.serving.output import Delta, merge


class DeltaStream:
    """The deltas of a request's n completions. Deltas gather while the reader is slow, into one.

    So a slow reader costs what its completions hold, and delays nobody else.
    """

    def __init__(self, request_id: str, seed: int, n: int) -> None:
        self.request_id = request_id
        self.seed = seed
        self._running = set(range(n))
        self._pending: dict[int, list[Delta]] = {}
        self._changed = asyncio.Event()

    def put(self, delta: Delta) -> None:
        assert delta.index in self._running, "nothing follows a terminal delta"
        self._pending.setdefault(delta.index, []).append(delta)
        if delta.terminal:
            self._running.remove(delta.index)
        self._changed.set()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        while not self._pending:
            if not self._running:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return merge(self._pending.pop(next(iter(self._pending))))
