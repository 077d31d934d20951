"""`headway chat`: a conversation in the terminal."""

import sys
from typing import Annotated

import typer

from headway.cli.generate import show
from headway.cli.source import Device, Dtype, Model, Place, Source, Target, TlsCa, Token, Tp, text_source
from headway.core.errors import InvalidRequest
from headway.core.sampling import SamplingParams


def chat(
    target: Target = None,
    model: Model = None,
    tp: Tp = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int, typer.Option(help="End an answer after this many tokens.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer; may be repeated.")] = None,
    token: Token = None,
    tls_ca: TlsCa = None,
) -> None:
    """Talk with a model that has a chat template. End with Ctrl-D.

    Once the conversation is longer than the model's context, its oldest turns are left out.
    """
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, stop=tuple(stop or ()))
    messages = [{"role": "system", "content": system}] if system else []
    place = Place(target=target, token=token, tls_ca=tls_ca, model=model, tp=tp, device=device, dtype=dtype)
    with text_source(place) as source:
        while (line := _ask()) is not None:
            if not line.strip():
                continue
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": _answer(source, messages, params)})


def _answer(source: Source, messages: list[dict[str, str]], params: SamplingParams) -> str:
    """The model's turn, written as it comes; drops the oldest turns from `messages` until they fit."""
    while True:
        try:
            return show(source.stream(messages, params))
        except InvalidRequest as error:
            first = 1 if messages[0]["role"] == "system" else 0
            if error.field != "prompt" or len(messages) < first + 3:
                raise
            del messages[first : first + 2]
            sys.stderr.write(
                "headway: the conversation is longer than the context; its oldest turn is left out\n"
            )


def _ask() -> str | None:
    """The next line without its end; None at the end of the input."""
    if sys.stdin.isatty():
        sys.stdout.write("> ")
        sys.stdout.flush()
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
