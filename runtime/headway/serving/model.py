"""The model as a front end sees it: a name, a tokenizer, a chat template. No weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from headway.core.errors import InvalidRequest
from headway.core.limits import check_length
from headway.serving.chat_template import ChatTemplate
from headway.serving.tokenizer import TextTokenizer

Message = Mapping[str, str]  # "role" and "content"
Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    name: str
    eos_token_ids: tuple[int, ...] = ()
    tokenizer: TextTokenizer | None = None
    template: ChatTemplate | None = None

    @classmethod
    def load(cls, folder: Path, *, name: str, eos_token_ids: tuple[int, ...]) -> Self:
        """What a model folder in Hugging Face layout holds of it. Raises ModelError."""
        tokenizer = TextTokenizer.load(folder)
        template = ChatTemplate.load(folder) if tokenizer else None
        return cls(name=name, eos_token_ids=eos_token_ids, tokenizer=tokenizer, template=template)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a text, of chat messages, or of themselves.

        Raises InvalidRequest. Ids are checked against the vocabulary later, where a replica's is known.
        """
        if isinstance(prompt, str):
            check_length("text", prompt)
            return self._tokenizer("a text").encode(prompt)
        check_prompt_kind(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            rendered = self._template(len(prompt)).render(_checked(prompt))
            return self._tokenizer("messages").encode(rendered, add_special_tokens=False)
        check_length("token_ids", prompt)
        return tuple(prompt)  # type: ignore[arg-type]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Raises InvalidRequest for a model without tokenizer."""
        return self._tokenizer("a text").decode(token_ids)

    def _tokenizer(self, given: str) -> TextTokenizer:
        if self.tokenizer is None:
            raise InvalidRequest("prompt", f"token ids: model {self.name} has no tokenizer", given)
        return self.tokenizer

    def _template(self, num_messages: int) -> ChatTemplate:
        if self.template is None:
            limit = f"left out, as model {self.name} has no chat template"
            raise InvalidRequest("messages", limit, num_messages)
        return self.template


def check_prompt_kind(prompt: object) -> None:
    """Raise InvalidRequest for what is neither a text nor a list. Bytes are neither."""
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Sequence):
        raise InvalidRequest("prompt", "a text, token ids or chat messages", prompt)


def _checked(messages: Sequence[object]) -> Sequence[Message]:
    check_length("messages", messages)
    checked: list[Message] = []
    for index, message in enumerate(messages):
        fields = dict(message) if isinstance(message, Mapping) else {}
        for field in ("role", "content"):
            name, value = f"messages[{index}].{field}", fields.get(field)
            if not isinstance(value, str):
                raise InvalidRequest(name, "a text", value)
            check_length(field, value, name)
        checked.append({"role": fields["role"], "content": fields["content"]})
    return checked
