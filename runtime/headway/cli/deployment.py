"""Replicas on Ray behind a gRPC front end, for as long as a block runs: what `serve` and `demo` stand on."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import chain

from headway.cluster.gang import Gang, Replica
from headway.cluster.session import RaySession
from headway.core.config import EngineConfig
from headway.core.progress import Report, silent
from headway.link.client import ReplicaLink
from headway.serving.model import ServedModel
from headway.serving.server import Server, ServerConfig


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """server: listening; replicas: ready. seconds: from the first rank's placement until then."""

    server: Server
    replicas: Sequence[Replica]
    seconds: float


@asynccontextmanager
async def deploy(
    session: RaySession,
    model: ServedModel,
    source: str,
    config: EngineConfig,
    server_config: ServerConfig,
    *,
    num_replicas: int = 1,
    report: Report = silent,
) -> AsyncIterator[Deployment]:
    """Start the front end (so that a taken port is known at once), then the replicas, then serve.

    source: of the same model, as `preflight` found it: where the ranks load their weights from.
    Raises ModelError, ConfigError, StartError; then nothing is left behind.
    """
    start = time.monotonic()
    async with AsyncExitStack() as stack:
        gangs = [Gang(session, source, config) for _ in range(num_replicas)]
        for gang in gangs:
            stack.callback(gang.stop)
        server = await Server.start(model, [], server_config)
        stack.push_async_callback(server.stop)  # before the gangs: streams end in an orderly way
        replicas = await _start(gangs, report)
        for replica in replicas:
            link = await ReplicaLink.connect(replica.target, replica.token)
            server.router.add(link)
        yield Deployment(server=server, replicas=replicas, seconds=time.monotonic() - start)


async def _start(gangs: Sequence[Gang], report: Report) -> list[Replica]:
    """All at once, but none sizes its pools before each has its weights: hosts may be shared."""
    hosts = await asyncio.gather(*(asyncio.to_thread(gang.load, report) for gang in gangs))
    ranks_on_host = Counter(chain.from_iterable(hosts))
    return await asyncio.gather(*(asyncio.to_thread(gang.begin, ranks_on_host, report) for gang in gangs))
