"""The front end's end of the link to one replica, on the front end's asyncio loop."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import grpc

from headway.core.errors import ReplicaUnavailable
from headway.core.request import EngineRequest, Load, ReplicaInfo, TokenEvent
from headway.link.channel import LINK_OPTIONS, channel_credentials, token_metadata
from headway.link.messages import (
    event_from_proto,
    idle_load,
    info_from_proto,
    load_from_proto,
    request_to_proto,
)
from headway.rpc.v1 import replica_pb2, replica_pb2_grpc


class ReplicaLink:
    """One stream to the replica at `target`; made by `connect`. Iterate it for the events of each step.

    The iteration raises ReplicaUnavailable when the link breaks; so does `submit` from then on.
    """

    def __init__(self, target: str, channel: grpc.aio.Channel, token: str | None) -> None:
        self.target = target
        self._channel = channel
        self._commands: asyncio.Queue[replica_pb2.RunRequest] = asyncio.Queue()
        self._broken: str | None = None
        stub: Any = replica_pb2_grpc.ReplicaServiceStub(channel)  # type: ignore[no-untyped-call]
        self._call = stub.Run(self._outgoing(), metadata=token_metadata(token))
        self.info: ReplicaInfo
        self.load: Load

    @classmethod
    async def connect(
        cls, target: str, token: str | None = None, *, tls_ca: Path | None = None, timeout_s: float = 30.0
    ) -> Self:
        """Connect and learn what the replica is. Raises ReplicaUnavailable, also after `timeout_s`."""
        credentials = channel_credentials(tls_ca)
        channel = (
            grpc.aio.secure_channel(target, credentials, options=LINK_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(target, options=LINK_OPTIONS)
        )
        link = cls(target, channel, token)
        try:
            async with asyncio.timeout(timeout_s):
                first = await link._read()
        except BaseException as error:
            await link.close()
            if isinstance(error, TimeoutError):
                raise ReplicaUnavailable(f"replica {target} did not answer within {timeout_s:g} s") from None
            raise
        link.info = info_from_proto(first.info)
        link.load = idle_load(link.info)
        return link

    def submit(self, request: EngineRequest) -> None:
        """Send `request` to the replica. A refusal comes back as its terminal event."""
        self._send(replica_pb2.RunRequest(submit=request_to_proto(request)))

    def abort(self, request_id: str) -> None:
        """Ask the replica to end a sequence; nothing happens if the link is broken or the id unknown."""
        if self._broken is None:
            self._send(replica_pb2.RunRequest(abort=request_id))

    def __aiter__(self) -> AsyncIterator[list[TokenEvent]]:
        return self

    async def __anext__(self) -> list[TokenEvent]:
        message = await self._read()
        if message.HasField("load"):
            self.load = load_from_proto(message.load)
        return [event_from_proto(event) for event in message.events]

    async def close(self) -> None:
        """Break the link; the replica aborts what came through it. Safe to call twice."""
        self._broken = self._broken or "the link was closed"
        self._call.cancel()
        await self._channel.close()

    def _send(self, command: replica_pb2.RunRequest) -> None:
        if self._broken is not None:
            raise ReplicaUnavailable(self._broken)
        self._commands.put_nowait(command)

    async def _outgoing(self) -> AsyncIterator[replica_pb2.RunRequest]:
        while True:
            yield await self._commands.get()

    async def _read(self) -> replica_pb2.RunResponse:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            self._break(f"{error.code().name.lower()}: {error.details()}")
        except asyncio.CancelledError:
            if self._broken is None:
                raise  # the reader was cancelled, not the call
            raise ReplicaUnavailable(self._broken) from None
        else:
            if isinstance(message, replica_pb2.RunResponse):
                return message
            self._break("the replica closed the stream")
        raise ReplicaUnavailable(self._broken)

    def _break(self, reason: str) -> None:
        self._broken = self._broken or f"the link to replica {self.target} broke ({reason})"
