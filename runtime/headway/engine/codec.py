"""Plans and reports as bytes. msgspec checks types while it decodes; nothing is ever unpickled."""

import msgspec

from headway.core.errors import InvalidRequest, ReplicaError
from headway.core.step import StepPlan

_ENCODER = msgspec.msgpack.Encoder()
_PLAN = msgspec.msgpack.Decoder(StepPlan)


def encode_plan(plan: StepPlan) -> bytes:
    return _ENCODER.encode(plan)


def decode_plan(data: bytes) -> StepPlan:
    """Raises ReplicaError if `data` is no plan."""
    try:
        return _PLAN.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, InvalidRequest) as error:  # the last: sampling's bounds
        raise ReplicaError(f"unreadable step plan of {len(data)} bytes: {error}") from error
