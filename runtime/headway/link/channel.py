"""What every gRPC port and channel of ours has in common: limits, keepalive, the token, TLS."""

import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from headway.core.errors import ConfigError

MAX_MESSAGE_BYTES = 32 << 20  # the longest prompt that limits.BOUNDS allows, with room to spare
# A host that vanishes without closing its sockets is noticed after keepalive_time + keepalive_timeout, also
# while a stream is silent.
_COMMON: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]
CHANNEL_OPTIONS = [*_COMMON, ("grpc.max_reconnect_backoff_ms", 2_000)]
# A replica is never behind a proxy, whatever http_proxy says.
LINK_OPTIONS = [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
LOOPBACK = ("127.", "localhost:", "[::1]:")  # how an address that only this host can reach begins
SERVER_OPTIONS = [
    *_COMMON,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # otherwise two servers share a port without a word
]

Metadata = Iterable[tuple[str, str | bytes]]


def client_options(target: str) -> list[tuple[str, Any]]:
    """Of a client's channel to the server at `target`: http_proxy counts, but not for this host."""
    return LINK_OPTIONS if target.startswith(LOOPBACK) else CHANNEL_OPTIONS


def token_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """What a caller sends to prove that it knows `token`. Raises ConfigError for one no header can hold."""
    if token and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise ConfigError("token must be printable ASCII without space around it; the given one is not")
    return (("authorization", f"Bearer {token}"),) if token else ()


def authorised(metadata: Metadata | None, token: str) -> bool:
    """Whether `metadata` carries `token`; takes the same time wherever the two differ."""
    sent = next((value for key, value in metadata or () if key == "authorization"), "")
    given = sent.encode() if isinstance(sent, str) else sent
    return hmac.compare_digest(given, f"Bearer {token}".encode())


def channel_credentials(tls_ca: Path | None) -> grpc.ChannelCredentials | None:
    """TLS that trusts `tls_ca` (PEM); None without one. Raises OSError."""
    return grpc.ssl_channel_credentials(tls_ca.read_bytes()) if tls_ca else None


def server_credentials(tls_cert: Path | None, tls_key: Path | None) -> grpc.ServerCredentials | None:
    """TLS with a certificate chain and its key (PEM); None without them. Raises OSError."""
    if tls_cert is None or tls_key is None:
        return None
    return grpc.ssl_server_credentials([(tls_key.read_bytes(), tls_cert.read_bytes())])
