"""Text to token ids and back, by the model's own tokenizer.json. No torch: see the design."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from headway.core.errors import ModelError


class TextTokenizer:
    """A thin cover of `tokenizers.Tokenizer`; `backend` is the real one."""

    def __init__(self, backend: Tokenizer) -> None:
        backend.no_truncation()  # a file may ask for either; a prompt is never cut or filled up
        backend.no_padding()
        self.backend = backend

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer | None":
        """The tokenizer of a model folder; None without a tokenizer.json. Raises ModelError."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            return None
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(f"{path} cannot be read: {error}") from None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        return tuple(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text without special tokens."""
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=True)
        return text
