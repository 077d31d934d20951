"""When does a sequence end?"""

from headway.core.request import FinishReason
from headway.scheduler.sequence import Sequence


def finish_reason(sequence: Sequence) -> FinishReason | None:
    """Why the sequence ends with its last known token, or None if it goes on.

    A stop id ends it once there are `min_tokens` outputs, itself and those from before a move included.
    `limit` is the smaller of the prompt plus max_tokens and the longest sequence that can be held.
    """
    stops = sequence.token_ids[-1] in sequence.stop_ids
    if stops and sequence.num_outputs >= sequence.request.sampling.min_tokens:
        return FinishReason.STOP
    if len(sequence.token_ids) >= sequence.limit:
        return FinishReason.LENGTH
    return None
