"""Token ids to text, one by one: a character whose bytes span tokens comes out once, whole."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from headway.serving.tokenizer import TextTokenizer

# Tokens of the prompt that decide how the first new one is written (a leading blank, mostly).
NUM_CONTEXT_TOKENS = 8
# Bytes that never become a character are let out at last, else each token would cost more than the one
# before. The three last tokens may still be the start of a character.
MAX_PENDING_TOKENS = 64
_MAX_OPEN_TOKENS = 3


class Detokenizer:
    """The text of one sequence behind its prompt. Cost per token: amortised constant."""

    def __init__(self, tokenizer: TextTokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._context: list[int]  # tokens given out last: how the next one is written depends on them
        self._pending: list[int]  # tokens without text so far
        self._stream: DecodeStream
        tail = list(prompt_ids[-NUM_CONTEXT_TOKENS:])
        # A tail that ends within a character has no text of its own to continue from.
        self._restart([] if tokenizer.decode(tail).endswith("\ufffd") else tail)

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character or a special token is under way."""
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._tokenizer.backend, token_id)
        except Exception:  # plain Exception: a decoder that rewrites what it has given out before
            return self._let_out(len(self._pending))
        if text is not None:
            self._context, self._pending = self._pending, []
            return str(text)
        if len(self._pending) >= MAX_PENDING_TOKENS:
            return self._let_out(len(self._pending) - _MAX_OPEN_TOKENS)
        return ""

    def flush(self) -> str:
        """What is left at the end: bytes that are no character, as U+FFFD."""
        return self._let_out(len(self._pending))

    def _let_out(self, count: int) -> str:
        out, rest = self._pending[:count], self._pending[count:]
        before = self._tokenizer.decode(self._context)
        text = self._tokenizer.decode(self._context + out)[len(before) :]
        self._restart([])
        return text + "".join(map(self.push, rest))

    def _restart(self, context: list[int]) -> None:
        self._context = context
        self._pending = []
        self._stream = DecodeStream(ids=list(context), skip_special_tokens=True)
