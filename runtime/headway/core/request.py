"""What goes down to a replica and what comes back: token ids, never text.

The front end holds the truth of a request. A replica can be replaced at any time: the front end submits
the request again with the tokens it has already delivered as `output_ids`, and generation goes on there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from headway.core.errors import HeadwayError
from headway.core.sampling import SamplingParams


class FinishReason(StrEnum):
    STOP = "stop"  # a stop id, the end-of-sequence id, or (set by the front end) a stop string
    LENGTH = "length"  # max_tokens, or the end of the context
    ABORT = "abort"  # cancelled, disconnected or past its deadline


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """One sequence to generate. `output_ids` are tokens delivered before a move; empty at first.

    `seed` is always set (the front end draws one where the client gave none), and `stop_token_ids` is
    complete: the model's end-of-sequence ids are in it unless they are to be ignored.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    stop_token_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Logprob:
    """Natural logarithm of a token's probability after penalties, before temperature and cuts."""

    token_id: int
    logprob: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEvent:
    """What one step did for one request: a token, an end, or both.

    `logprobs` is empty unless asked for; then the chosen token comes first and the likeliest follow.
    A request gets exactly one event with `finish_reason` or `error` set, and nothing behind it.
    """

    request_id: str
    token_id: int | None = None
    logprobs: tuple[Logprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None  # one line; the event is then terminal, with this gRPC status name as code:
    error_code: str | None = None
    retryable: bool = False
    num_pages_freed: int | None = None  # by an abort: how much it added to Load.free_pages

    @classmethod
    def failed(cls, request_id: str, error: HeadwayError) -> Self:
        """The terminal event of a request that `error` ends."""
        return cls(request_id=request_id, error=str(error), error_code=error.code, retryable=error.retryable)

    @property
    def terminal(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaInfo:
    """What a replica is, learnt by the front end when it connects."""

    world_size: int
    device: str  # "cpu", or the GPU's name
    dtype: str
    vocab_size: int
    max_model_len: int  # tokens a sequence may have, prompt and output, by the context and the pool
    page_size: int
    num_pages: int  # a rank, in the layers without a window; where all have one, in those with the widest
    pool_bytes: int  # a rank, all layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How busy a replica is; the router compares these."""

    num_running: int
    num_waiting: int
    free_pages: int
    num_pages: int
    step: int  # of the last step done


Listener = Callable[[Sequence[TokenEvent], Load], None]
"""Told after each step, from the engine's thread: what it did, and how busy the replica is then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One finished output, as `headway.LLM` and the clients return it."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[tuple[Logprob, ...], ...] = ()  # a token each; empty unless asked for
    index: int = 0  # which of n
    num_prompt_tokens: int = 0
