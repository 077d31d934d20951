"""One completion's way from token events to text: detokenise, look for stop strings, count, end.

Free of gRPC: the front end and the offline `headway.LLM` both use it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from headway.core.errors import HeadwayError
from headway.core.request import Completion, EngineRequest, FinishReason, Logprob, TokenEvent
from headway.serving.detokenizer import Detokenizer
from headway.serving.failure import Failure, error_of, failure_of
from headway.serving.stops import StopFilter
from headway.serving.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What is new in one completion. Exactly one of a completion's deltas is terminal: its last."""

    index: int = 0  # which of n
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[tuple[Logprob, ...], ...] = ()  # a token each
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    num_prompt_tokens: int = 0  # this and the next: in the terminal delta
    num_output_tokens: int = 0

    @property
    def terminal(self) -> bool:
        return self.finish_reason is not None or self.failure is not None


def merge(deltas: list[Delta]) -> Delta:
    """Consecutive deltas of one completion as one."""
    if len(deltas) == 1:
        return deltas[0]
    return replace(
        deltas[-1],
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        text="".join(delta.text for delta in deltas),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
    )


class Output:
    """The state of one completion. Text is a function of the tokens alone, so it can be resumed.

    `request.output_ids` were delivered before: they are taken into account and not given out again.
    `finish_reason` is set as soon as the end is known; after a stop string the engine must be told.
    """

    def __init__(self, request: EngineRequest, tokenizer: TextTokenizer | None, index: int = 0) -> None:
        sampling = request.sampling
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._index = index
        self._detokenizer = Detokenizer(tokenizer, request.prompt_ids) if tokenizer else None
        self._stops = StopFilter(sampling.stop, sampling.min_tokens)
        self._stop_ids = frozenset(request.stop_token_ids)
        for token in request.output_ids:
            self._advance(token)
        if self.finish_reason is None and len(self.token_ids) >= sampling.max_tokens:
            self.finish_reason = FinishReason.LENGTH

    def push(self, event: TokenEvent) -> Delta:
        """Take one event of this request; not after its end."""
        tokens = () if event.token_id is None else (event.token_id,)
        text = "".join(map(self._advance, tokens))
        delta = Delta(
            index=self._index,
            token_ids=tokens,
            text=text,
            logprobs=(event.logprobs,) if event.logprobs else (),
        )
        if event.error is not None:
            return self._ended(delta, failure=_event_failure(event))
        reason = self.finish_reason or event.finish_reason
        return delta if reason is None else self._finished(delta, reason)

    def end(self, reason: FinishReason) -> Delta:
        """End it here, with the text that was held back."""
        return self._finished(Delta(index=self._index), reason)

    def fail(self, error: BaseException) -> Delta:
        """End it here. Text that was held back stays so: after a resumption it may turn out to be cut."""
        return self._ended(Delta(index=self._index), failure=failure_of(error))

    def _advance(self, token_id: int) -> str:
        self.token_ids.append(token_id)
        if token_id in self._stop_ids:
            self.finish_reason = FinishReason.STOP  # and its text is not part of the output
            return ""
        return self._filter(self._detokenizer.push(token_id)) if self._detokenizer else ""

    def _filter(self, text: str) -> str:
        if self._stops.matched:
            return ""
        text = self._stops.push(text, len(self.token_ids))
        if self._stops.matched:
            self.finish_reason = FinishReason.STOP
        return text

    def _finished(self, delta: Delta, reason: FinishReason) -> Delta:
        text = delta.text
        if self._detokenizer and not self._stops.matched:
            text += self._filter(self._detokenizer.flush())
            text += self._stops.flush()
        self.finish_reason = self.finish_reason or reason
        return self._ended(replace(delta, text=text), finish_reason=self.finish_reason)

    def _ended(
        self, delta: Delta, *, finish_reason: FinishReason | None = None, failure: Failure | None = None
    ) -> Delta:
        return replace(
            delta,
            finish_reason=finish_reason,
            failure=failure,
            num_prompt_tokens=len(self._request.prompt_ids),
            num_output_tokens=len(self.token_ids),
        )


def _event_failure(event: TokenEvent) -> Failure:
    code, text = event.error_code or "INTERNAL", event.error or ""
    if code == "INTERNAL":
        return failure_of(HeadwayError(text))
    return Failure(code=code, text=text, retryable=event.retryable)


def collect(deltas: Iterable[Delta]) -> list[Completion]:
    """The completions that all their deltas make, by index. Raises the error that one ended with."""
    by_index: dict[int, list[Delta]] = {}
    for delta in deltas:
        by_index.setdefault(delta.index, []).append(delta)
    return [_completion(merge(by_index[index])) for index in sorted(by_index)]


def _completion(whole: Delta) -> Completion:
    if whole.failure is not None:
        raise error_of(whole.failure.code, whole.failure.text)
    assert whole.finish_reason is not None, "a completion's deltas end with a terminal one"
    return Completion(
        token_ids=whole.token_ids,
        text=whole.text,
        finish_reason=whole.finish_reason,
        logprobs=whole.logprobs,
        index=whole.index,
        num_prompt_tokens=whole.num_prompt_tokens,
    )
