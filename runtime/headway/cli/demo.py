"""`headway demo`: the main job once, from start to stop: shards on Ray, a gRPC front end, a client."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from headway.core.config import EngineConfig
from headway.core.errors import counted
from headway.core.sampling import SamplingParams

if TYPE_CHECKING:
    from headway.cli.stop import StopSignals
    from headway.cluster.session import RaySession
    from headway.serving.client import AsyncClient
    from headway.serving.model import ServedModel

LINE = "ROMEO:\nBut, soft! what light through yonder window breaks?\n"


def demo(
    model: Annotated[str, typer.Option(help="A folder, a hub name, or the bundled model.")] = "demo",
    tp: Annotated[int, typer.Option(help="Ranks: GPUs, or processes on a CPU.")] = 2,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = LINE,
    max_tokens: Annotated[int, typer.Option(help="How far to continue it.")] = 160,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    ray: Annotated[str, typer.Option(help="auto or local: a cluster on this host; else HOST:PORT.")] = "auto",
) -> None:
    """Start the bundled model on Ray shards, stream a continuation over gRPC, report, stop."""
    from headway.cli.report import print_line
    from headway.cli.stop import StopSignals
    from headway.cluster.preflight import preflight
    from headway.cluster.session import RaySession
    from headway.serving.model import ServedModel

    config = EngineConfig(tp=tp, device=device)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    found = preflight(model, config, ray=ray)
    served = ServedModel.load(found.folder, name=model, eos_token_ids=found.spec.eos_token_ids)
    print_line(f"Starting {model} on {counted(tp, 'tensor-parallel rank')}")
    start = time.monotonic()
    with StopSignals() as stop:
        with stop.over(RaySession(ray, num_ranks=tp)) as session:
            ray_seconds = time.monotonic() - start
            asyncio.run(_demo(session, served, found.source, config, prompt, params, ray_seconds, stop))
        print_line("Stopped; nothing is left running")


async def _demo(
    session: "RaySession",
    model: "ServedModel",
    source: str,
    config: EngineConfig,
    prompt: str,
    params: SamplingParams,
    ray_seconds: float,
    stop: "StopSignals",
) -> None:
    from headway.cli.deployment import deploy
    from headway.cli.report import print_line, print_start
    from headway.cli.stop import until
    from headway.serving.client import AsyncClient
    from headway.serving.server import ServerConfig

    with stop.event() as stopped:
        async with AsyncExitStack() as stack:
            start = deploy(session, model, source, config, ServerConfig(address="127.0.0.1:0"))
            running = await until(stopped, stack.enter_async_context(start))
            if running is None:
                return
            print_start(running.replicas, ray_seconds)
            print_line(f"Asking {running.server.address} over gRPC to continue:\n\n{prompt}")
            client = await stack.enter_async_context(AsyncClient(running.server.address))
            await until(stopped, _stream(client, prompt, params))


async def _stream(client: "AsyncClient", prompt: str, params: SamplingParams) -> None:
    """Show the text as it comes, then how fast it came."""
    from headway.cli.report import print_line, print_piece
    from headway.cli.table import print_table

    start = time.monotonic()
    times: list[float] = []
    num_tokens = 0
    async for delta in client.stream(prompt, params):
        times.append(time.monotonic())
        num_tokens += len(delta.token_ids)
        print_piece(delta.text)
    first, last = times[0], times[-1]
    print_line("\n")
    print_table(
        "Generation",
        ("tokens", "first after, ms", "tokens/s then"),
        [
            (
                str(num_tokens),
                f"{1e3 * (first - start):.1f}",
                f"{(num_tokens - 1) / max(last - first, 1e-9):.1f}",
            )
        ],
    )
