"""`headway generate`: one prompt, its continuation on stdout as it comes."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

import typer

from headway.cli.source import Device, Dtype, Model, Place, Target, TlsCa, Token, Tp, text_source
from headway.core.errors import ConfigError
from headway.core.sampling import SamplingParams


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    target: Target = None,
    model: Model = None,
    tp: Tp = 1,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_tokens: Annotated[int, typer.Option(help="End after this many tokens.")] = 256,
    min_tokens: Annotated[int, typer.Option(help="Let nothing end it before this many tokens.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest that reach this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Keep those this likely, relative to the likeliest.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens of prompt and text are less likely.")
    ] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option(help="Above 0: tokens of the text are less likely, however often they came.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="Above 0: the more often a token came, the less likely it is.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends it; may be repeated.")] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="The model's end-of-sequence ids do not end it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a text, at the end.")] = False,
    n: Annotated[int, typer.Option("--n", help="With --json: so many texts.")] = 1,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: each token's log probability, and so many likeliest.")
    ] = None,
    token: Token = None,
    tls_ca: TlsCa = None,
) -> None:
    """Continue a text, with a running server or a model in this process."""
    params = SamplingParams(
        n=n,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        seed=seed,
        logprobs=logprobs,
    )
    if not as_json and (n > 1 or logprobs is not None):
        given = f"n={n}" if n > 1 else f"logprobs={logprobs}"
        raise ConfigError(f"{given} needs --json")
    place = Place(target=target, token=token, tls_ca=tls_ca, model=model, tp=tp, device=device, dtype=dtype)
    with text_source(place) as source:
        if as_json:
            for completion in source.complete(prompt, params):
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
