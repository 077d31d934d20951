"""Messages to a prompt, by the model's own chat template: a Jinja program, so it runs in a sandbox.

What templates may rely on (`raise_exception`, `strftime_now`, `tojson`, loop controls, `generation` blocks,
special tokens by name) follows transformers' apply_chat_template.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headway.core.errors import InvalidRequest, ModelError, shorten
from headway.core.limits import BOUNDS

MAX_CHARACTERS = int(BOUNDS["text"].max)
MAX_SECONDS = 1.0
_DEADLINE = "_deadline"


class ChatTemplate:
    """A compiled template and the special tokens that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises ModelError for a template that is no Jinja."""
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ModelError(f"the chat template cannot be parsed: {error}") from None
        self._special_tokens = dict(special_tokens)

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate | None":
        """The template of a model folder, from chat_template.jinja or tokenizer_config.json, if any.

        Raises ModelError that names the file.
        """
        config = _read_config(folder)
        own = folder / "chat_template.jinja"
        source = _read_own(own) if own.is_file() else _default(folder, config.get("chat_template"))
        try:
            return cls(source, _special_tokens(config)) if source else None
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> str:
        """The prompt. Raises InvalidRequest: refused by the template, or too long, or too slow.

        The time is looked at whenever the template writes or calls something, so that a loop that does
        neither can overstay by as long as it takes.
        """
        deadline = _Deadline(clock)
        variables = {
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            _DEADLINE: deadline,
        }
        pieces, size = [], 0
        try:
            for piece in self._template.generate(variables):
                deadline.check()
                size += len(piece)
                if size > MAX_CHARACTERS:
                    raise TemplateError(f"more than {MAX_CHARACTERS} characters")
                pieces.append(piece)
        except TemplateError as error:
            raise _unfit(str(error)) from None
        except Exception as error:  # a template is a program; it can raise anything
            raise _unfit(type(error).__name__) from None
        return "".join(pieces)


class _Deadline:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._end = clock() + MAX_SECONDS

    def check(self) -> None:
        if self._clock() > self._end:
            raise TemplateError(f"more than {MAX_SECONDS:g} s of rendering")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Besides the sandbox's own rules: no value grows past the bound by repetition, and time is kept."""

    intercepted_binops = frozenset({"*", "**"})

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        deadline = __context.get(_DEADLINE)
        if isinstance(deadline, _Deadline):
            deadline.check()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, str | list | tuple) else side for side in (left, right)]
        if operator == "**" or (sizes[0] * sizes[1] > MAX_CHARACTERS):
            raise TemplateError(f"{operator} with a result past {MAX_CHARACTERS}")
        return super().call_binop(context, operator, left, right)


class _GenerationBlock(Extension):
    """{% generation %} marks what a trainer learns from; when generating it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _unfit(reason: str) -> InvalidRequest:
    return InvalidRequest("messages", "what the model's chat template takes", reason)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold an object, got {shorten(config)}")
    return config


def _read_own(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8: {error}") from None


def _default(folder: Path, templates: Any) -> str | None:
    """`chat_template` is a text, or a list of named ones of which "default" is for plain chat."""
    if templates is None or isinstance(templates, str):
        return templates
    named = templates if isinstance(templates, list) else [templates]
    if not all(_is_named(entry) for entry in named):
        limit = "a text or a list of objects with a name and a template"
        where = folder / "tokenizer_config.json"
        raise ModelError(f"chat_template in {where} must be {limit}, got {shorten(templates)}")
    return {entry["name"]: entry["template"] for entry in named}.get("default")


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and so on; each is a text, or an object with the text as `content`."""
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {n: value.get("content") if isinstance(value, dict) else value for n, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
