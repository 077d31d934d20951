"""A gRPC port of ours: whether it can be listened on, and listening."""

import socket
from pathlib import Path

import grpc

from headway.core.errors import StartError
from headway.link.channel import server_credentials


def check_listener(address: str, tls_cert: Path | None = None, tls_key: Path | None = None) -> None:
    """Raise StartError where HOST:PORT cannot be listened on now, with the reason, which gRPC only logs."""
    _credentials(tls_cert, tls_key)
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, *_, place = found[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror or error}") from None


def bind(
    server: grpc.Server | grpc.aio.Server, address: str, tls_cert: Path | None, tls_key: Path | None
) -> str:
    """Let `server` listen on HOST:PORT; returns it with its real port. Raises StartError."""
    check_listener(address, tls_cert, tls_key)
    credentials = _credentials(tls_cert, tls_key)
    try:
        if credentials:
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        if credentials:
            given = f"{tls_cert} and {tls_key}"
            raise StartError(f"tls_cert and tls_key must be a PEM certificate and its key, got {given}")
        raise StartError(f"cannot listen on {address}: gRPC refuses it")
    return f"{address.rpartition(':')[0]}:{port}"


def _credentials(tls_cert: Path | None, tls_key: Path | None) -> grpc.ServerCredentials | None:
    try:
        return server_credentials(tls_cert, tls_key)
    except OSError as error:
        raise StartError(f"{error.filename} cannot be read: {error.strerror}") from None
