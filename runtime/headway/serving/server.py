"""The front end as a whole: services, health, reflection, token, TLS on one port."""

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from headway.core.errors import ConfigError
from headway.link.channel import SERVER_OPTIONS, token_metadata
from headway.link.listener import bind
from headway.rpc.v1 import control_pb2, control_pb2_grpc, inference_pb2, inference_pb2_grpc
from headway.serving.auth import TokenInterceptor
from headway.serving.control import ControlService
from headway.serving.health import Health
from headway.serving.inference import InferenceService
from headway.serving.malformed import MessageInterceptor
from headway.serving.model import ServedModel
from headway.serving.router import Replica, Router

_SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    control_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name,
)

_FAREWELL_S = 1.0  # for a client to read the terminal message of a stream that the stop cut short


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How a front end listens.

    address: HOST:PORT; port 0 takes a free one. The default can be reached from this host alone.
    token: what clients must send; None lets everyone in who reaches the port.
    tls_cert, tls_key: PEM files; both or neither.
    max_in_flight: sequences accepted and not ended; more are refused RESOURCE_EXHAUSTED.
    """

    address: str = "127.0.0.1:50051"
    token: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_in_flight: int = 1024

    def __post_init__(self) -> None:
        host, colon, port = self.address.rpartition(":")
        if not (host and colon and port.isdecimal() and int(port) < 1 << 16):
            raise ConfigError(f"address must be HOST:PORT with a port from 0 to 65535, got {self.address!r}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key must be given together")
        token_metadata(self.token)
        if self.max_in_flight < 1:
            raise ConfigError(f"max_in_flight must be at least 1, got {self.max_in_flight}")

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def loopback(self) -> bool:
        """Whether this host alone can reach the listener. A name other than localhost may be anyone's."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Server:
    """A running front end; made by `start`, on the asyncio loop that it lives on."""

    def __init__(self, model: ServedModel, config: ServerConfig) -> None:
        self._health = Health(_SERVICES)
        self._had_replicas = False
        self.router = Router(max_in_flight=config.max_in_flight, on_change=self._on_change)
        guards = [TokenInterceptor(config.token)] if config.token else []
        interceptors = [*guards, MessageInterceptor()]
        self._server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
        self._stopping = False
        self.lost = asyncio.Event()  # set when the last replica has gone
        _add_services(self._server, model, self.router, self._health)
        self.address = bind(self._server, config.address, config.tls_cert, config.tls_key)

    @classmethod
    async def start(
        cls, model: ServedModel, replicas: Sequence[Replica], config: ServerConfig | None = None
    ) -> Self:
        """Listen and serve. More replicas may be added to `router` later. Raises StartError."""
        server = cls(model, config or ServerConfig())
        for replica in replicas:
            server.router.add(replica)
        server._on_change()
        await server._server.start()
        return server

    @property
    def loss(self) -> str | None:
        """Why the replica that was lost last is gone: for the operator's eyes."""
        return self.router.loss

    async def wait(self) -> None:
        """Until `stop`."""
        await self._server.wait_for_termination()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Refuse new calls and give running ones `grace_s`; those left end with UNAVAILABLE.

        Safe to call twice.
        """
        self._stopping = True
        self._on_change()
        closing = asyncio.ensure_future(self._server.stop(grace_s + _FAREWELL_S))
        await asyncio.wait([closing], timeout=grace_s)
        await self.router.stop()
        await closing

    def _on_change(self) -> None:
        if self._had_replicas and not self.router.replicas and not self._stopping:
            self.lost.set()
        self._had_replicas = bool(self.router.replicas)
        self._health.set(bool(self.router.replicas) and not self._stopping)


def _add_services(server: grpc.aio.Server, model: ServedModel, router: Router, status: Health) -> None:
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(model, router), server)  # type: ignore[no-untyped-call]
    control_pb2_grpc.add_ControlServiceServicer_to_server(ControlService(model, router), server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(status.servicer, server)
    reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
