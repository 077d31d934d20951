"""Where `generate` and `chat` get their text from: a server, or a model in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from headway.core import env
from headway.core.errors import ConfigError
from headway.core.request import Completion
from headway.core.sampling import SamplingParams

DEFAULT_TARGET = "127.0.0.1:50051"


@dataclass(frozen=True, kw_only=True)
class Source:
    """stream: prompt and parameters to pieces of text. complete: the same to the whole, with its ids."""

    stream: Callable[[Any, SamplingParams], Iterator[str]]
    complete: Callable[[Any, SamplingParams], Completion]


@contextmanager
def text_source(target: str | None, model: str | None, tp: int, token: str | None) -> Iterator[Source]:
    """A server's or a model's text, until the block ends. Raises ConfigError where both are given."""
    if target and model:
        raise ConfigError("give either --target or --model, not both")
    if model:
        from headway.cli.progress import progress_bars
        from headway.llm import LLM

        with progress_bars() as report:
            llm = LLM(model, tp=tp, report=report)
        with llm:
            yield Source(stream=llm.stream, complete=lambda prompt, params: llm.generate([prompt], params)[0])
        return
    from headway.serving.client import Client

    with Client(target or DEFAULT_TARGET, token or env.token()) as client:
        yield Source(
            stream=lambda prompt, params: (delta.text for delta in client.stream(prompt, params)),
            complete=lambda prompt, params: client.generate_all(prompt, params)[0],
        )
