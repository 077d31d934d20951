"""`headway bench`: what engines, ranks and idle servers do; `bench_gpu` has what kernels do."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from headway.cli.bench_gpu import all_reduce, attention, kernels
from headway.cli.figures import Output, check_output, or_dash, report
from headway.core.errors import ConfigError, counted

if TYPE_CHECKING:
    from headway.cluster.session import RaySession
    from headway.core.config import EngineConfig
    from headway.model.spec import DecoderSpec
    from headway.serving.model import ServedModel

app = typer.Typer(
    no_args_is_help=True,
    help="Measure this machine beside other ways to do the same.",
)

app.command()(attention)
app.command()(kernels)
app.command()(all_reduce)

Model = Annotated[str, typer.Option(help="A folder in Hugging Face layout, a hub name, or demo.")]
Device = Annotated[str, typer.Option(help="auto, cuda or cpu.")]
NumPrompt = Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens of each prompt.")]
NumTokens = Annotated[int, typer.Option("--tokens", min=2, help="Tokens generated a stream.")]


@app.command()
def latency(
    model: Model = "demo",
    device: Device = "auto",
    num_prompt: NumPrompt = 32,
    num_tokens: NumTokens = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs; the median counts.")] = 5,
    output: Output = None,
) -> None:
    """One stream on one rank, beside transformers' generate in the same run."""
    from statistics import median

    from headway.cluster.preflight import preflight
    from headway.core.config import EngineConfig

    check_output(output)
    config = EngineConfig(device=device)
    found = preflight(model, config)
    prompt = _prompt(found.spec, num_prompt, num_tokens)

    from headway.bench.decode import DecodeBench
    from headway.bench.peer import transformers_ms_per_token

    bench = DecodeBench(found.folder, config)
    bench.run(prompt, num_streams=1, num_tokens=num_tokens)
    runs = [bench.run(prompt, num_streams=1, num_tokens=num_tokens) for _ in range(repeats)]
    bench.close()
    ours = sorted(runs, key=lambda run: run.ms_per_token)[len(runs) // 2]
    total_ms = median(run.ttft_ms + run.ms_per_token * (num_tokens - 1) for run in runs) / num_tokens
    peer = transformers_ms_per_token(
        found.folder, prompt, num_tokens=num_tokens, device=ours.device, dtype=ours.dtype, repeats=repeats
    )
    rows = [
        ("first token, ms", f"{ours.ttft_ms:.2f}"),
        ("ms a token", f"{ours.ms_per_token:.3f}"),
        ("outside the model, ms a step", or_dash(ours.outside_ms)),
        ("ms a token, prompt included", f"{total_ms:.3f}"),
        ("transformers generate, the same", or_dash(peer)),
        ("speed relative to transformers", or_dash(peer and peer / total_ms, "{:.2f}x")),
    ]
    figures = asdict(ours) | {"ms_per_token_with_prompt": total_ms, "transformers_ms_per_token": peer}
    report(
        f"Latency of {model}: 1 stream, {ours.device}, {ours.dtype}",
        ("figure", "value"),
        rows,
        figures,
        output,
    )


@app.command()
def throughput(
    model: Model = "demo",
    device: Device = "auto",
    num_prompt: NumPrompt = 32,
    num_tokens: NumTokens = 128,
    streams: Annotated[
        list[int] | None, typer.Option(min=1, help="Streams at once; may be repeated. [1 4 16]")
    ] = None,
    output: Output = None,
) -> None:
    """Several streams at once on one rank."""
    from headway.cluster.preflight import preflight
    from headway.core.config import EngineConfig

    check_output(output)
    numbers = streams or [1, 4, 16]
    config = EngineConfig(device=device, max_num_rows=max(*numbers, 64))
    found = preflight(model, config)
    prompt = _prompt(found.spec, num_prompt, num_tokens)

    from headway.bench.decode import DecodeBench

    bench = DecodeBench(found.folder, config)
    for number in numbers:
        bench.run(prompt, num_streams=number, num_tokens=num_tokens)
    runs = [bench.run(prompt, num_streams=number, num_tokens=num_tokens) for number in numbers]
    bench.close()
    base = runs[0].tokens_per_s
    rows = [
        (
            str(run.num_streams),
            f"{run.step_ms:.3f}",
            or_dash(run.outside_ms),
            f"{run.tokens_per_s:,.0f}",
            f"{run.tokens_per_s / base:.2f}x",
        )
        for run in runs
    ]
    columns = ("streams", "ms a step", "outside the model", "tokens/s", "relative")
    title = f"Throughput of {model}: {runs[0].device}, {runs[0].dtype}"
    report(title, columns, rows, [asdict(run) for run in runs], output)


@app.command()
def tp(
    model: Model = "demo",
    device: Device = "auto",
    max_tp: Annotated[int, typer.Option(min=1, help="Measure 1, 2, ... up to this many ranks.")] = 2,
    num_prompt: NumPrompt = 32,
    num_tokens: NumTokens = 64,
    streams: Annotated[
        list[int] | None, typer.Option(min=1, help="Streams at once; may be repeated. [1 16]")
    ] = None,
    frame_bytes: Annotated[int, typer.Option(min=1, help="Size of a plan in the round trips.")] = 256,
    trips: Annotated[int, typer.Option(min=1, help="Round trips timed.")] = 2000,
    ray: Annotated[str, typer.Option(help="auto or local, else HOST:PORT.")] = "auto",
    output: Output = None,
) -> None:
    """Ranks on Ray: the step channel beside Ray's own ways, and decoding speed by number of ranks."""
    from headway.cluster.preflight import preflight
    from headway.core.config import EngineConfig

    check_output(output)
    found = preflight(model, EngineConfig(tp=max_tp, device=device), ray=ray)
    prompt = _prompt(found.spec, num_prompt, num_tokens)

    from headway.bench.channel import round_trips
    from headway.bench.scaling import measure
    from headway.cluster.session import RaySession

    with RaySession(ray, num_ranks=max_tp) as session:
        trips_us = round_trips(session, num_bytes=frame_bytes, num_trips=trips)
        runs = [
            run
            for size in range(1, max_tp + 1)
            for run in measure(
                session,
                found.source,
                EngineConfig(tp=size, device=device),
                prompt,
                num_streams=streams or [1, 16],
                num_tokens=num_tokens,
            )
        ]
    channel_us = next(iter(trips_us.values()))["p50_us"]
    rows = [
        (way, f"{times['p50_us']:.1f}", f"{times['p99_us']:.1f}", f"{times['p50_us'] / channel_us:.1f}x")
        for way, times in trips_us.items()
    ]
    title = f"Round trips of {frame_bytes} bytes, microseconds"
    report(title, ("way", "median", "p99", "relative"), rows, None, None)
    speeds = [
        (
            str(run.tp),
            str(run.num_streams),
            f"{run.start_s:.2f}",
            f"{run.ms_per_token:.3f}",
            f"{run.tokens_per_s:,.0f}",
        )
        for run in runs
    ]
    columns = ("ranks", "streams", "start, s", "ms a token", "tokens/s")
    figures = {"round_trips": trips_us, "scaling": [asdict(run) for run in runs]}
    report(f"Tensor parallelism of {model}: {runs[0].device}", columns, speeds, figures, output)


@app.command()
def idle(
    model: Model = "demo",
    device: Device = "auto",
    tp: Annotated[int, typer.Option(min=1, help="Ranks of the server, and actors of Ray alone.")] = 2,
    seconds: Annotated[float, typer.Option(min=1, help="How long each is watched.")] = 20.0,
    output: Output = None,
) -> None:
    """An idle server beside Ray with as many idle actors: share of a core, all processes together."""
    import asyncio

    from headway.bench.idle import ray_alone
    from headway.cluster.preflight import preflight
    from headway.cluster.session import RaySession
    from headway.core.config import EngineConfig
    from headway.serving.model import ServedModel

    check_output(output)
    config = EngineConfig(tp=tp, device=device)
    found = preflight(model, config)
    served = ServedModel.load(found.folder, name=model, eos_token_ids=found.spec.eos_token_ids)
    with RaySession("local", num_ranks=tp) as session:
        base = ray_alone(session, num_actors=tp, seconds=seconds)
        whole = asyncio.run(_idle_server(session, served, found.source, config, seconds))
    rows = [
        (f"Ray with {counted(tp, 'idle actor')}", f"{100 * base:.2f}"),
        (f"an idle server with {counted(tp, 'rank')}", f"{100 * whole:.2f}"),
        ("the server adds", f"{100 * (whole - base):.2f}"),
    ]
    figures = {"ray_share": base, "server_share": whole, "tp": tp, "seconds": seconds}
    report("Idle, percent of a core", ("what", "percent"), rows, figures, output)


async def _idle_server(
    session: "RaySession", model: "ServedModel", source: str, config: "EngineConfig", seconds: float
) -> float:
    from headway.bench.idle import server
    from headway.cli.deployment import deploy
    from headway.serving.server import ServerConfig

    async with deploy(session, model, source, config, ServerConfig(address="127.0.0.1:0")):
        return await server(seconds)


def _prompt(spec: "DecoderSpec", num_prompt: int, num_tokens: int) -> list[int]:
    """Token ids that are the same on every run and not all alike. Raises ConfigError if they do not fit."""
    if num_prompt + num_tokens > spec.max_model_len:
        limit = f"at most {spec.max_model_len} (the model's context)"
        raise ConfigError(f"prompt-tokens plus tokens must be {limit}, got {num_prompt + num_tokens}")
    return [(7 * index + 1) % spec.vocab_size for index in range(num_prompt)]
