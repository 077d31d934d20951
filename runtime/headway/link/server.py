"""The replica's end of the link: one bidirectional stream for each front end.

This is gRPC's synchronous server. A replica has a stream or two, so threads cost nothing here, and a second
asyncio loop beside an actor's or a front end's in one process makes grpc.aio contend for one poller.
"""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from headway.core.errors import HeadwayError
from headway.link.channel import SERVER_OPTIONS, authorised
from headway.link.listener import bind
from headway.link.messages import event_to_proto, info_to_proto, load_to_proto, request_from_proto
from headway.link.port import EnginePort
from headway.link.switchboard import Outbox, Switchboard
from headway.rpc.v1 import replica_pb2, replica_pb2_grpc

MAX_STREAMS = 16
MAX_REASON = 1000  # characters: it travels in a header
FAREWELL_S = 3.0  # at most, for what is on its way to a front end when the replica stops

log = logging.getLogger(__name__)


class ReplicaServer:
    """Serves `port` on HOST:PORT (0 takes a free one) until `stop`. Raises StartError, ConfigError.

    token: what the front end must send; None lets everyone in, so listen on loopback then.
    """

    def __init__(
        self,
        port: EnginePort,
        *,
        address: str = "127.0.0.1:0",
        token: str | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
    ) -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(MAX_STREAMS, "headway-link"),
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=MAX_STREAMS,
        )
        self._switchboard = Switchboard(port)
        service = _ReplicaService(port, self._switchboard, token)
        replica_pb2_grpc.add_ReplicaServiceServicer_to_server(service, self._server)  # type: ignore[no-untyped-call]
        self.address = bind(self._server, address, tls_cert, tls_key)
        self._server.start()

    def stop(self, reason: str | None = None) -> None:
        """Send what is on its way, then close every stream, which aborts what came through it.

        reason: what failed, if something did; the front end's end of the link raises it. Safe to call twice.
        """
        stopped = self._server.stop(FAREWELL_S)  # first, so that no stream comes after the last is ended
        self._switchboard.end(" ".join(reason.split())[:MAX_REASON] if reason else None)
        stopped.wait()


class _ReplicaService(replica_pb2_grpc.ReplicaServiceServicer):
    def __init__(self, port: EnginePort, switchboard: Switchboard, token: str | None) -> None:
        self._port = port
        self._token = token
        self._switchboard = switchboard

    def Run(  # noqa: N802
        self, request_iterator: Iterator[replica_pb2.RunRequest], context: grpc.ServicerContext
    ) -> Iterator[replica_pb2.RunResponse]:
        if self._token and not authorised(context.invocation_metadata(), self._token):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the replica's token is missing or wrong")
        outbox = self._switchboard.open()
        if not context.add_callback(lambda: self._switchboard.close(outbox)):
            self._switchboard.close(outbox)
        reader = threading.Thread(target=self._read, args=(request_iterator, outbox), daemon=True)
        reader.start()
        yield replica_pb2.RunResponse(info=info_to_proto(self._port.info))
        while (step := outbox.take()) is not None:
            events, load = step
            yield replica_pb2.RunResponse(events=map(event_to_proto, events), load=load_to_proto(load))
        if outbox.reason is not None:
            context.abort(grpc.StatusCode.UNAVAILABLE, outbox.reason)

    def _read(self, commands: Iterator[replica_pb2.RunRequest], outbox: Outbox) -> None:
        try:
            for command in commands:
                self._obey(command, outbox)
        except grpc.RpcError:
            pass  # the stream broke; its end is seen to by the callback, too
        except Exception:
            log.exception("the link's reader failed")
        self._switchboard.close(outbox)

    def _obey(self, command: replica_pb2.RunRequest, outbox: Outbox) -> None:
        if command.WhichOneof("command") == "abort":
            self._switchboard.abort(outbox, command.abort)
        elif command.WhichOneof("command") == "submit":
            try:
                request = request_from_proto(command.submit)
            except HeadwayError as error:
                outbox.fail(command.submit.request_id, error)
            else:
                self._switchboard.submit(outbox, request)
