"""Every error Headway raises on purpose.

    HeadwayError
    ├── ConfigError            a setting or argument is wrong; nothing was started
    ├── ModelError             a model folder cannot be served: unknown, incomplete or contradictory
    ├── StartError             a replica could not start: no memory, too few GPUs, port taken
    ├── RequestError           one request; the others go on
    │   ├── InvalidRequest     a field is out of its bounds
    │   ├── DuplicateRequest   the id is in use
    │   ├── UnknownRequest     no such id, or not yours
    │   ├── Unauthenticated    the token is missing or wrong
    │   ├── Overloaded         the queue is full; try again later
    │   ├── DeadlineExceeded   the client's deadline passed
    │   └── Cancelled          the client cancelled or went away
    └── ReplicaError           a replica is gone or going; its requests may be replayed
        ├── ReplicaUnavailable no rank can take the work now
        └── StepMismatch       ranks disagree about a step

`code` is the gRPC status name a client sees; `retryable` says whether the same request may succeed later.
"""

from typing import Any, ClassVar


class HeadwayError(Exception):
    """Base of the tree; its text is one line fit for a user."""

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        """An error of a rank travels to another process, and some are not made from their text alone."""
        return _remade, (type(self), self.args, self.__dict__)


def _remade(kind: type[HeadwayError], args: tuple[Any, ...], fields: dict[str, Any]) -> HeadwayError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConfigError(HeadwayError):
    code = "INVALID_ARGUMENT"


class ModelError(HeadwayError):
    code = "FAILED_PRECONDITION"


class StartError(HeadwayError):
    code = "UNAVAILABLE"


class RequestError(HeadwayError):
    pass


class InvalidRequest(RequestError):
    """A request's `field` has `value`, against `limit`."""

    code = "INVALID_ARGUMENT"

    def __init__(self, field: str, limit: str, value: object) -> None:
        super().__init__(f"{field} must be {limit}, got {shorten(value)}")
        self.field = field
        self.limit = limit
        self.value = value


class DuplicateRequest(RequestError):
    code = "ALREADY_EXISTS"


class UnknownRequest(RequestError):
    code = "NOT_FOUND"


class Unauthenticated(RequestError):
    code = "UNAUTHENTICATED"


class Overloaded(RequestError):
    code = "RESOURCE_EXHAUSTED"
    retryable = True


class DeadlineExceeded(RequestError):
    code = "DEADLINE_EXCEEDED"


class Cancelled(RequestError):
    code = "CANCELLED"


class ReplicaError(HeadwayError):
    code = "UNAVAILABLE"
    retryable = True


class ReplicaUnavailable(ReplicaError):
    pass


class StepMismatch(ReplicaError):
    """Rank `rank` found at `step` that it does not stand where the plan assumes."""

    def __init__(self, rank: int, step: int, text: str) -> None:
        super().__init__(f"rank {rank} disagrees at step {step}: {text}")
        self.rank = rank
        self.step = step


def counted(number: int, noun: str) -> str:
    """Like "1 rank" and "2 ranks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shorten(value: object, limit: int = 80) -> str:
    """`value` as a message may show it: its repr, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
