"""grpc.health.v1: SERVING while a replica takes work; for the server as a whole and for each service."""

import asyncio
from collections.abc import Sequence

from grpc_health.v1 import health, health_pb2


class Health:
    """`servicer` answers; `set` changes the answer, also for those who watch."""

    def __init__(self, services: Sequence[str]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._services = ("", *services)
        self._wanted: bool | None = None
        self._task: asyncio.Task[None] | None = None

    def set(self, serving: bool) -> None:
        """Takes effect in this turn of the loop or the next; the last call wins."""
        self._wanted = serving
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        published = None
        while published != self._wanted:
            published = self._wanted
            answers = health_pb2.HealthCheckResponse
            status = answers.SERVING if published else answers.NOT_SERVING
            for service in self._services:
                await self.servicer.set(service, status)
