"""`headway serve`: replicas on Ray behind a gRPC front end, until a signal to stop."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway.core import env
from headway.core.config import EngineConfig
from headway.core.errors import ConfigError, ReplicaUnavailable

if TYPE_CHECKING:
    from headway.cli.stop import StopSignals
    from headway.cluster.session import RaySession
    from headway.serving.model import ServedModel
    from headway.serving.server import ServerConfig


def serve(
    model: Annotated[str, typer.Argument(help="A folder in Hugging Face layout, a hub name, or demo.")],
    tp: Annotated[int, typer.Option(help="Ranks of a replica: GPUs, or processes on a CPU.")] = 1,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Copies of the model.")] = 1,
    grpc: Annotated[str, typer.Option(help="HOST:PORT to listen on.")] = "127.0.0.1:50051",
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    max_model_len: Annotated[
        int | None, typer.Option(help="Tokens a sequence may have. (the model's context)")
    ] = None,
    page_size: Annotated[int, typer.Option(help="Tokens a page of the KV pool holds.")] = 16,
    num_pages: Annotated[
        int | None, typer.Option(help="Pages of layers without a window. (what memory allows)")
    ] = None,
    memory_fraction: Annotated[float, typer.Option(help="Part of the device's memory to use.")] = 0.9,
    max_num_rows: Annotated[int, typer.Option(help="Sequences that run at once.")] = 64,
    max_num_tokens: Annotated[int, typer.Option(help="Tokens computed a step.")] = 1024,
    max_in_flight: Annotated[int, typer.Option(help="Sequences accepted at once; more are refused.")] = 1024,
    start_timeout: Annotated[float, typer.Option(help="Seconds in which a replica must start.")] = 300.0,
    ray: Annotated[str, typer.Option(help="auto or local: a cluster on this host; else HOST:PORT.")] = "auto",
    token: Annotated[
        str | None, typer.Option(help="What clients must send as bearer token. [HEADWAY_TOKEN]")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate of the listener.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of the listener.")] = None,
) -> None:
    """Serve a model over gRPC."""
    from headway.cluster.preflight import preflight
    from headway.link.listener import check_listener
    from headway.serving.model import ServedModel
    from headway.serving.server import ServerConfig

    config = EngineConfig(
        tp=tp,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        page_size=page_size,
        num_pages=num_pages,
        memory_fraction=memory_fraction,
        max_num_rows=max_num_rows,
        max_num_tokens=max_num_tokens,
        start_timeout_s=start_timeout,
    )
    server = ServerConfig(
        address=grpc,
        token=token or env.token(),
        tls_cert=tls_cert,
        tls_key=tls_key,
        max_in_flight=max_in_flight,
    )
    if not (server.token or server.loopback):
        raise ConfigError(
            f"token must be set to listen on {grpc}, which other hosts can reach: --token or HEADWAY_TOKEN"
        )
    check_listener(grpc, tls_cert, tls_key)
    found = preflight(model, config, ray=ray, num_replicas=replicas)
    served = ServedModel.load(found.folder, name=model, eos_token_ids=found.spec.eos_token_ids)

    from headway.cli.report import print_line
    from headway.cli.stop import StopSignals
    from headway.cluster.session import RaySession

    start = time.monotonic()
    with StopSignals() as stop:
        with stop.over(RaySession(ray, num_ranks=tp * replicas)) as session:
            ray_seconds = time.monotonic() - start
            asyncio.run(_serve(session, served, found.source, config, server, replicas, ray_seconds, stop))
        print_line("Stopped; nothing is left running")


async def _serve(
    session: "RaySession",
    model: "ServedModel",
    source: str,
    config: EngineConfig,
    server_config: "ServerConfig",
    num_replicas: int,
    ray_seconds: float,
    stop: "StopSignals",
) -> None:
    """Until SIGINT or SIGTERM. Raises ReplicaUnavailable once no replica is left."""
    from headway.cli.deployment import deploy
    from headway.cli.progress import progress_bars
    from headway.cli.report import print_line, print_start
    from headway.cli.stop import until

    with stop.event() as stopped:
        async with AsyncExitStack() as stack:
            with progress_bars() as report:
                start = deploy(
                    session, model, source, config, server_config, num_replicas=num_replicas, report=report
                )
                running = await until(stopped, stack.enter_async_context(start))
            if running is None:
                return
            print_start(running.replicas, ray_seconds)
            print_line(f"Serving {model.name} at {running.server.address} (gRPC)")
            await until(stopped, running.server.lost.wait())
            if running.server.lost.is_set():
                raise ReplicaUnavailable(f"every replica is lost; the last one: {running.server.loss}")
            print_line("Stopping")
