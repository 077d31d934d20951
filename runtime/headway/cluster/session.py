"""Ray itself: a small cluster of our own on this host, or one that was started elsewhere."""

import logging
import os
import signal
import socket
import threading
from types import TracebackType
from typing import Any, Self

import psutil

from headway.cluster.guard import Guard
from headway.core import env
from headway.core.errors import ConfigError, HeadwayError, StartError

OBJECT_STORE_BYTES = 80 << 20  # nothing of ours goes through the object store; Ray wants 75 MiB at least
REACH_TIMEOUT_S = 5.0
JOIN_TIMEOUT_S = 15.0
LOCAL = ("auto", "local")
_RAY_INIT_ERRORS = (Exception, SystemExit)  # ray.init exits where it finds no cluster


class RaySession:
    """A connection to Ray. Leaving it ends the cluster if it is our own, and only the connection if not.

    address: "auto" or "local" start a cluster on this host, anything else is a cluster's HOST:PORT.
    Raises StartError if Ray cannot be started or reached.
    """

    def __init__(self, address: str = "auto", *, num_ranks: int = 1) -> None:
        self.local = address in LOCAL
        if not self.local:
            _check_reachable(address)
        env.prepare_ray(local=self.local)
        import ray

        self.ray: Any = ray
        self._guard: Guard | None = None
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.local:
            options |= {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "num_cpus": max(os.cpu_count() or 1, num_ranks),
            }
        else:
            options |= {"address": address}
        try:
            self._init(options)
        except HeadwayError:
            raise
        except _RAY_INIT_ERRORS as error:
            if self.local:
                self.close()
            where = "started" if self.local else f"reached at {address}"
            raise StartError(f"ray cannot be {where}: {_reason(error)}") from None

    def _init(self, options: dict[str, Any]) -> None:
        """Our own cluster's processes end with the *thread* that starts them: so it is the caller's.

        Joining a cluster starts none, but has no deadline of its own; a thread gives it one.
        """
        if self.local:
            before = _children()
            try:
                self.ray.init(**options)
            finally:
                self._guard = Guard(_children() - before)
            return
        failure: list[BaseException] = []

        def join() -> None:
            try:
                self.ray.init(**options)
            except _RAY_INIT_ERRORS as error:
                failure.append(error)

        thread = threading.Thread(target=join, name="ray-init", daemon=True)
        thread.start()
        thread.join(JOIN_TIMEOUT_S)
        if thread.is_alive():
            raise StartError(
                f"ray at {options['address']} must answer within {JOIN_TIMEOUT_S:g} s, it did not"
            )
        if failure:
            raise failure[0]

    def close(self) -> None:
        """Safe to call twice."""
        self.ray.shutdown()
        if self._guard is not None:
            self._guard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def _reason(error: BaseException) -> str:
    """The first line of what Ray says; its handler of SIGTERM says the signal's number alone."""
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
        return "told to stop (SIGTERM)"
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _check_reachable(address: str) -> None:
    """Fail at once, and clearly, where nothing listens; Ray itself would go on trying for a minute."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) >= 1 << 16:
        raise ConfigError(f"ray address must be auto, local or HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StartError(f"ray cannot be reached at {address}: {reason}") from None
