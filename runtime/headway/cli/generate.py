"""`headway generate`: one prompt, its continuation on stdout as it comes."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

import typer

from headway.cli.source import text_source
from headway.core.sampling import SamplingParams


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    target: Annotated[str | None, typer.Option(help="HOST:PORT of a server. [127.0.0.1:50051]")] = None,
    model: Annotated[
        str | None, typer.Option(help="Run this model here instead: a folder, a hub name, or demo.")
    ] = None,
    tp: Annotated[int, typer.Option(help="With --model: GPUs (or processes) to shard it over.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="End after this many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest that reach this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Keep those this likely, relative to the likeliest.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends it; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    token: Annotated[str | None, typer.Option(help="What the server asks for. [HEADWAY_TOKEN]")] = None,
) -> None:
    """Continue a text, with a running server or a model in this process."""
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
    )
    with text_source(target, model, tp, token) as source:
        if as_json:
            completion = source.complete(prompt, params)
            sys.stdout.write(json.dumps({"prompt": prompt, **asdict(completion)}) + "\n")
        else:
            show(source.stream(prompt, params))


def show(pieces: Iterable[str]) -> str:
    """Write each piece as it comes, and a line's end; returns the whole."""
    text = ""
    for piece in pieces:
        text += piece
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return text
