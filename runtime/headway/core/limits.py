"""The bounds of every request field, declared once, below every front end.

`prompt` lengths depend on the model too; `check_prompt` takes that limit as an argument.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from headway.core.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class Bound:
    """An inclusive range for a number, or for the length of a text or list (`unit` says of what)."""

    min: float
    max: float
    integer: bool = True
    unit: str = ""

    def __str__(self) -> str:
        if self.unit:
            return f"{self.min} to {self.max} {self.unit}"
        kind = "an integer" if self.integer else "a number"
        return f"{kind} from {self.min:g} to {self.max if self.integer else format(self.max, 'g')}"


NUM_ANY_IDS = 1 << 31  # of the largest vocabulary that a message has room for

BOUNDS: Mapping[str, Bound] = MappingProxyType(
    {
        "temperature": Bound(min=0, max=100, integer=False),
        "top_k": Bound(min=0, max=1 << 20),
        "top_p": Bound(min=1e-6, max=1, integer=False),
        "min_p": Bound(min=0, max=1, integer=False),
        "repetition_penalty": Bound(min=0.01, max=100, integer=False),
        "presence_penalty": Bound(min=-2, max=2, integer=False),
        "frequency_penalty": Bound(min=-2, max=2, integer=False),
        "n": Bound(min=1, max=64),
        "max_tokens": Bound(min=1, max=1 << 20),
        "min_tokens": Bound(min=0, max=1 << 20),
        "logprobs": Bound(min=0, max=20),
        "seed": Bound(min=0, max=(1 << 63) - 1),
        "timeout_s": Bound(min=0.001, max=86_400, integer=False),
        "stop": Bound(min=0, max=16, unit="items"),
        "stop[]": Bound(min=1, max=256, unit="characters"),
        "stop_token_ids": Bound(min=0, max=64, unit="items"),
        "request_id": Bound(min=1, max=128, unit="characters"),
        "text": Bound(min=1, max=4 << 20, unit="characters"),
        "token_ids": Bound(min=1, max=1 << 20, unit="items"),
        "resume_token_ids": Bound(min=0, max=1 << 20, unit="items"),
        "messages": Bound(min=1, max=1024, unit="items"),
        "role": Bound(min=1, max=64, unit="characters"),
        "content": Bound(min=0, max=4 << 20, unit="characters"),
    }
)


def check_number(field: str, value: object) -> None:
    """Raise InvalidRequest unless `value` is a finite number within `BOUNDS[field]`."""
    bound = BOUNDS[field]
    kinds = (int,) if bound.integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise InvalidRequest(field, str(bound), value)
    if not bound.min <= value <= bound.max:  # NaN is not, and an integer may be too large for a float
        raise InvalidRequest(field, str(bound), value)


def check_length(field: str, value: Sequence[object], name: str | None = None) -> None:
    """Raise InvalidRequest unless the length of `value` is within `BOUNDS[field]`."""
    bound = BOUNDS[field]
    if not bound.min <= len(value) <= bound.max:
        raise InvalidRequest(name or field, str(bound), len(value))


def check_token_ids(field: str, token_ids: Sequence[int], vocab_size: int | None = None) -> None:
    """Raise InvalidRequest unless every id is an integer in [0, vocab_size).

    Where the model is not known, its vocabulary may be as large as a message can tell.
    """
    end, whose = (NUM_ANY_IDS, "") if vocab_size is None else (vocab_size, " (the model's vocabulary)")
    for index, token in enumerate(token_ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < end:
            raise InvalidRequest(f"{field}[{index}]", f"an integer from 0 to {end - 1}{whose}", token)


def check_prompt(token_ids: Sequence[int], *, vocab_size: int, max_prompt_tokens: int) -> None:
    """Raise InvalidRequest unless the prompt is not empty, fits, and is within the vocabulary.

    `max_prompt_tokens` is the replica's: the context length or the pool, whichever is smaller, less the
    one token that must have room to be generated.
    """
    if not 1 <= len(token_ids) <= max_prompt_tokens:
        limit = f"1 to {max_prompt_tokens} tokens (the context and the page pool)"
        raise InvalidRequest("prompt", limit, len(token_ids))
    check_token_ids("prompt", token_ids, vocab_size)
