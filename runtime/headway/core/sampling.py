"""How the next token is chosen: the parameters of one request."""

from dataclasses import dataclass

from headway.core.errors import InvalidRequest
from headway.core.limits import BOUNDS, check_length, check_number, check_token_ids

NUMERIC = [
    "n",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
    "min_tokens",
]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of one request; out-of-bounds values raise InvalidRequest at construction.

    temperature: 0 is greedy; otherwise logits are divided by it.
    top_k: keep the k likeliest tokens; 0 keeps all.
    top_p: keep the likeliest tokens whose probabilities reach top_p (the one that reaches it included).
    min_p: keep tokens at least min_p times as likely as the likeliest.
    repetition_penalty: divide positive and multiply negative logits of every token in prompt or output.
    presence_penalty, frequency_penalty: subtract once, or once a use, for tokens in the output.
    max_tokens: end with finish_reason "length" after this many; the context's end does the same.
    min_tokens: before this many, neither stop ids nor stop strings end the output, and the
        end-of-sequence token and stop ids are not chosen.
    stop: strings that end the output and are cut from it.
    stop_token_ids: ids that end the output, beside the model's end-of-sequence ids.
    ignore_eos: the model's end-of-sequence ids do not end the output.
    seed: the same seed, prompt and parameters give the same tokens; None draws one.
    logprobs: None, or how many likeliest tokens to report beside each chosen one (0: the chosen alone).
    n: how many completions of the prompt; completion i uses seed + i.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 256
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for field in NUMERIC:
            check_number(field, getattr(self, field))
        for field in ("seed", "logprobs"):
            if getattr(self, field) is not None:
                check_number(field, getattr(self, field))
        if self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens", f"at most max_tokens ({self.max_tokens})", self.min_tokens)
        self._check_stops()

    def _check_stops(self) -> None:
        for field in ("stop", "stop_token_ids"):
            value = getattr(self, field)
            if isinstance(value, str) or not isinstance(value, tuple | list):
                raise InvalidRequest(field, "a list", value)
            object.__setattr__(self, field, tuple(value))
            check_length(field, value)
        for index, text in enumerate(self.stop):
            if not isinstance(text, str):
                raise InvalidRequest(f"stop[{index}]", "a text", text)
            check_length("stop[]", text, f"stop[{index}]")
        check_token_ids("stop_token_ids", self.stop_token_ids)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


assert set(NUMERIC) <= BOUNDS.keys()
