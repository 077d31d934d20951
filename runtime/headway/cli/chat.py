"""`headway chat`: a conversation in the terminal."""

import sys
from typing import Annotated

import typer

from headway.cli.generate import show
from headway.cli.source import Device, Dtype, Model, Place, Target, TlsCa, Token, Tp, text_source
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
    token: Token = None,
    tls_ca: TlsCa = None,
) -> None:
    """Talk with a model that has a chat template. End with Ctrl-D."""
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    messages = [{"role": "system", "content": system}] if system else []
    place = Place(target=target, token=token, tls_ca=tls_ca, model=model, tp=tp, device=device, dtype=dtype)
    with text_source(place) as source:
        while (line := _ask()) is not None:
            if not line.strip():
                continue
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": show(source.stream(messages, params))})


def _ask() -> str | None:
    """The next line without its end; None at the end of the input."""
    if sys.stdin.isatty():
        sys.stdout.write("> ")
        sys.stdout.flush()
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
