"""Where `generate` and `chat` get their text from: a server, or a model in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from headway.core import env
from headway.core.errors import ConfigError
from headway.core.request import Completion
from headway.core.sampling import SamplingParams

DEFAULT_TARGET = "127.0.0.1:50051"

Target = Annotated[str | None, typer.Option(help="HOST:PORT of a server. [127.0.0.1:50051]")]
Token = Annotated[str | None, typer.Option(help="What the server asks for. [HEADWAY_TOKEN]")]
TlsCa = Annotated[
    Path | None, typer.Option(help="PEM certificate of who signed the server's; plain text without.")
]
Model = Annotated[
    str | None, typer.Option(help="Run this model here instead: a folder, a hub name, or demo.")
]
Tp = Annotated[int, typer.Option(help="With --model: GPUs (or processes) to shard it over.")]
Device = Annotated[str, typer.Option(help="With --model: auto, cuda or cpu.")]
Dtype = Annotated[str, typer.Option(help="With --model: auto, float32, float16 or bfloat16.")]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Options that say where text comes from: the first three of a server, the others of a model here.

    Raises ConfigError where both are given.
    """

    target: str | None = None
    token: str | None = None
    tls_ca: Path | None = None
    model: str | None = None
    tp: int = 1
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.target and self.model:
            raise ConfigError("give either --target or --model, not both")
        if self.tls_ca and self.model:
            raise ConfigError("give either --tls-ca, which is for a server, or --model, not both")
        if not self.model:
            for name, default in (("tp", 1), ("device", "auto"), ("dtype", "auto")):
                if (value := getattr(self, name)) != default:
                    raise ConfigError(f"{name} must be {default} without --model, got {value}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """stream: prompt and parameters to pieces of text. complete: the same to n completions, whole."""

    stream: Callable[[Any, SamplingParams], Iterator[str]]
    complete: Callable[[Any, SamplingParams], list[Completion]]


@contextmanager
def text_source(place: Place) -> Iterator[Source]:
    """A server's or a model's text, until the block ends."""
    if place.model:
        from headway.cli.progress import progress_bars
        from headway.llm import LLM

        with progress_bars() as report:
            llm = LLM(place.model, tp=place.tp, device=place.device, dtype=place.dtype, report=report)
        with llm:
            yield Source(stream=llm.stream, complete=llm.generate)
        return
    from headway.serving.client import Client

    with Client(place.target or DEFAULT_TARGET, place.token or env.token(), tls_ca=place.tls_ca) as client:
        yield Source(
            stream=lambda prompt, params: (delta.text for delta in client.stream(prompt, params)),
            complete=client.generate_all,
        )
