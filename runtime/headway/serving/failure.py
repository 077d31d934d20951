"""An error as a client sees it, and back: the one table between the error tree and status names.

`core.errors` gives each class its status name; here is what may be told, and which class a name becomes.
"""

import logging
import re
from dataclasses import dataclass

from headway.core import errors
from headway.core.errors import HeadwayError, InvalidRequest, ReplicaError, RequestError

log = logging.getLogger(__name__)

_CLASSES: dict[str, type[HeadwayError]] = {
    "ALREADY_EXISTS": errors.DuplicateRequest,
    "CANCELLED": errors.Cancelled,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "FAILED_PRECONDITION": errors.ModelError,
    "NOT_FOUND": errors.UnknownRequest,
    "RESOURCE_EXHAUSTED": errors.Overloaded,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "UNAVAILABLE": errors.ReplicaUnavailable,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    code: str  # a gRPC status name
    text: str
    retryable: bool


def failure_of(error: BaseException) -> Failure:
    """What a client is told of `error`. Whatever is not about a request is logged and told as INTERNAL."""
    if isinstance(error, RequestError | ReplicaError):
        return Failure(code=error.code, text=str(error), retryable=error.retryable)
    log.error("internal error", exc_info=error)
    return Failure(code="INTERNAL", text="internal error; the server's log has more", retryable=False)


def error_of(code: str, text: str) -> HeadwayError:
    """The error that a client raises for a status name and its text."""
    if code == "INVALID_ARGUMENT":
        return _invalid(text)
    return _CLASSES.get(code, HeadwayError)(text)


def _invalid(text: str) -> InvalidRequest:
    """Rebuilt from its one line, whose value is a representation already."""
    parts = re.fullmatch(r"(\S+) must be (.*), got (.*)", text, re.DOTALL)
    error = InvalidRequest(*(parts.groups() if parts else ("request", "valid", text)))
    error.args = (text,)
    return error
