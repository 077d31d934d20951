"""The step channel: the leader sends each plan's bytes to every follower; a follower reports trouble back.

One stream socket a follower, frames behind a 4-byte length. Ranks on one host meet at an abstract Unix
socket (no port, no file), ranks on several at TCP. Whoever connects shows the replica's secret first,
since a TCP port may be found by others. A frame that a rank waits for costs one blocking `recv`: no
polling, so an idle replica takes no CPU. `headway bench tp` measures the round trip.
"""

import contextlib
import hmac
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headway.core.errors import ReplicaError, StartError

LENGTH = struct.Struct("!I")
HELLO = struct.Struct("!32sI")  # the secret, and the follower's rank
MAX_FRAME = 256 << 20
FIRST_BUFFER = 64 << 10  # grows to the largest frame; a new one for each `recv` would cost more than it
SPIN_S = 100e-6
SPIN_CORES = 8
HELLO_TIMEOUT_S = 2.0  # for whoever has connected to say who it is


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where followers find the leader: an abstract Unix name, or a TCP host and port."""

    name: str = ""
    host: str = ""
    port: int = 0

    def connect(self, timeout_s: float) -> socket.socket:
        if self.name:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.settimeout(timeout_s)
            try:
                link.connect(f"\0{self.name}")
            except OSError:
                link.close()
                raise
            return link
        return socket.create_connection((self.host, self.port), timeout=timeout_s)


class Connection:
    """Frames over one connected stream socket. One thread sends, one receives."""

    def __init__(self, link: socket.socket) -> None:
        if link.family != socket.AF_UNIX:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        link.settimeout(None)
        self._link = link
        self._held = memoryview(bytearray(FIRST_BUFFER))  # what came and has not been given out: its start
        self._num_held = 0
        self._spin_s = SPIN_S if (os.cpu_count() or 1) >= SPIN_CORES else 0.0

    def send(self, frame: bytes) -> None:
        """Raises OSError if the other end is gone."""
        self._link.sendall(LENGTH.pack(len(frame)) + frame)

    def receive(self, timeout_s: float | None = None) -> bytes | None:
        """The next frame; None once the other end has closed. Raises TimeoutError after `timeout_s`."""
        if timeout_s is None:
            return self._receive()
        self._link.settimeout(timeout_s)
        try:
            return self._receive()
        finally:
            self._link.settimeout(None)

    def _receive(self) -> bytes | None:
        if not self._hold(LENGTH.size):
            return None
        (size,) = LENGTH.unpack_from(self._held)
        if size > MAX_FRAME:
            raise ReplicaError(f"step channel frame must be at most {MAX_FRAME} bytes, got {size}")
        end = LENGTH.size + size
        if not self._hold(end):
            return None
        frame = bytes(self._held[LENGTH.size : end])
        self._num_held -= end
        if self._num_held:  # the start of the next frame came with this one
            self._held[: self._num_held] = bytes(self._held[end : end + self._num_held])
        return frame

    def _hold(self, size: int) -> bool:
        """Wait for `size` bytes; False if the other end closes before."""
        if size > len(self._held):
            grown = memoryview(bytearray(size))
            grown[: self._num_held] = self._held[: self._num_held]
            self._held = grown
        while self._num_held < size:
            try:
                count = self._receive_some(self._held[self._num_held :])
            except ConnectionError:
                count = 0
            if count == 0:
                return False
            self._num_held += count
        return True

    def _receive_some(self, free: memoryview) -> int:
        """At least one byte into `free`; 0 if the other end has closed.

        With cores to spare it looks for a moment before it sleeps, since being woken takes longer than
        most answers. Where every core has work, looking would only keep the other end from its turn.
        """
        deadline = time.perf_counter() + self._spin_s
        while self._spin_s and time.perf_counter() < deadline:
            with contextlib.suppress(BlockingIOError):
                return self._link.recv_into(free, 0, socket.MSG_DONTWAIT)
        return self._link.recv_into(free)

    def wait(self) -> None:
        """Until there is something to receive, or the other end has closed, or this one."""
        with contextlib.suppress(OSError):
            self._link.recv(1, socket.MSG_PEEK)

    def close(self) -> None:
        """Wake whoever is blocked in `receive`, here and at the other end."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()


class ChannelListener:
    """The leader's end before the followers have come."""

    def __init__(self, host: str | None) -> None:
        """Listen at `host` (an interface's address), or on this host alone where it is None."""
        self.secret = secrets.token_bytes(32)
        if host is None:
            self.endpoint = Endpoint(name=f"headway-{secrets.token_hex(16)}")
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(f"\0{self.endpoint.name}")
            self._listener.listen()
        else:
            self._listener = socket.create_server((host, 0))
            self.endpoint = Endpoint(host=host, port=self._listener.getsockname()[1])

    def accept(self, num_followers: int, timeout_s: float) -> list[Connection]:
        """Wait for every follower; connections in the order of their ranks (1 first), then stop listening.

        Raises StartError that names the missing ranks once `timeout_s` has passed; the others are let go.
        """
        deadline = time.monotonic() + timeout_s
        found: dict[int, Connection] = {}
        try:
            while missing := [rank for rank in range(1, num_followers + 1) if rank not in found]:
                link = self._next(deadline)
                if link is None:
                    text = f"ranks {missing} did not join the step channel in {timeout_s:g} s"
                    raise StartError(text)
                rank = self._greet(link, min(deadline, time.monotonic() + HELLO_TIMEOUT_S))
                if rank in missing:
                    found[rank] = Connection(link)
                else:
                    link.close()
        except BaseException:
            for connection in found.values():
                connection.close()
            raise
        finally:
            self.close()
        return [found[rank] for rank in sorted(found)]

    def _next(self, deadline: float) -> socket.socket | None:
        """Whoever connects next; None if nobody does by then."""
        self._listener.settimeout(_left(deadline))
        try:
            return self._listener.accept()[0]
        except TimeoutError:
            return None

    def _greet(self, link: socket.socket, deadline: float) -> int:
        """The rank of a follower that knows the secret; -1 for anyone else, and for silence."""
        hello = b""
        try:
            while len(hello) < HELLO.size:
                link.settimeout(_left(deadline))
                piece = link.recv(HELLO.size - len(hello))
                if not piece:
                    return -1
                hello += piece
        except OSError:
            return -1
        secret, rank = HELLO.unpack(hello)
        return rank if hmac.compare_digest(secret, self.secret) else -1

    def close(self) -> None:
        self._listener.close()


def join(endpoint: Endpoint, secret: bytes, rank: int, timeout_s: float) -> Connection:
    """A follower's end. Raises StartError if the leader cannot be reached."""
    with contextlib.ExitStack() as stack:
        try:
            link = stack.enter_context(endpoint.connect(timeout_s))
            link.sendall(HELLO.pack(secret, rank))
        except OSError as error:
            raise StartError(f"rank {rank} cannot reach the leader's step channel: {error}") from error
        stack.pop_all()
    return Connection(link)


def broadcast(connections: Sequence[Connection], frame: bytes) -> None:
    """Raises ReplicaError that names the first rank that is gone."""
    for rank, connection in enumerate(connections, start=1):
        try:
            connection.send(frame)
        except OSError as error:
            raise ReplicaError(f"rank {rank} left the step channel: {error}") from error


def reports(connections: Iterable[Connection], wait_s: float) -> list[str]:
    """After a failure: what followers have sent, one report each at most, waiting `wait_s` in all."""
    deadline = time.monotonic() + wait_s
    found = []
    for rank, connection in enumerate(connections, start=1):
        try:
            report = connection.receive(_left(deadline))
        except (TimeoutError, OSError, ReplicaError):
            continue
        if report is None:
            found.append(f"rank {rank} left the step channel")
        else:
            found.append(report.decode("utf-8", "replace"))
    return found


def _left(deadline: float) -> float:
    """Seconds until `deadline`, as a socket's timeout: 0 would mean something else there."""
    return max(deadline - time.monotonic(), 0.001)
