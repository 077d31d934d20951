"""The offline end of the link: one caller, no asyncio."""

from queue import SimpleQueue
from typing import Any

import grpc

from headway.core.errors import ReplicaUnavailable
from headway.core.request import EngineRequest, TokenEvent
from headway.link.channel import LINK_OPTIONS, token_metadata
from headway.link.messages import event_from_proto, info_from_proto, request_to_proto
from headway.rpc.v1 import replica_pb2, replica_pb2_grpc


class SyncReplicaLink:
    """One stream to the replica at `target`. Raises ReplicaUnavailable: it cannot be reached, or it broke."""

    def __init__(self, target: str, token: str | None = None, *, timeout_s: float = 30.0) -> None:
        self._target = target
        self._commands: SimpleQueue[replica_pb2.RunRequest | None] = SimpleQueue()
        self._channel = grpc.insecure_channel(target, options=LINK_OPTIONS)
        try:
            grpc.channel_ready_future(self._channel).result(timeout_s)
        except grpc.FutureTimeoutError:
            self._channel.close()
            raise ReplicaUnavailable(f"replica {target} did not answer within {timeout_s:g} s") from None
        stub: Any = replica_pb2_grpc.ReplicaServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._call = stub.Run(iter(self._commands.get, None), metadata=token_metadata(token))
        self.info = info_from_proto(self._read().info)

    def submit(self, request: EngineRequest) -> None:
        self._commands.put(replica_pb2.RunRequest(submit=request_to_proto(request)))

    def abort(self, request_id: str) -> None:
        self._commands.put(replica_pb2.RunRequest(abort=request_id))

    def next_events(self) -> list[TokenEvent]:
        """Wait for the next step; what it did for our sequences, perhaps nothing."""
        return [event_from_proto(event) for event in self._read().events]

    def close(self) -> None:
        """Break the link; the replica aborts what came through it. Safe to call twice."""
        self._commands.put(None)
        self._call.cancel()
        self._channel.close()

    def _read(self) -> replica_pb2.RunResponse:
        try:
            message: replica_pb2.RunResponse = next(self._call)
        except grpc.RpcError as error:
            reason = f"{error.code().name.lower()}: {error.details()}"
        except StopIteration:
            reason = "the replica closed the stream"
        else:
            return message
        raise ReplicaUnavailable(f"the link to replica {self._target} broke ({reason})")
