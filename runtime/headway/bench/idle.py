"""What an idle server costs beside an idle Ray: processor time of all our processes, as a share of a core."""

import asyncio
import time
from typing import Any

import psutil

from headway.cluster.session import RaySession

SETTLE_S = 3.0


class _IdleActor:
    """A process with nothing to do."""

    def ready(self) -> bool:
        return True


def ray_alone(session: RaySession, *, num_actors: int, seconds: float) -> float:
    """Fraction of a core that Ray takes with `num_actors` idle actors."""
    ray = session.ray
    actors: list[Any] = [ray.remote(_IdleActor).options(num_cpus=0.1).remote() for _ in range(num_actors)]
    ray.get([actor.ready.remote() for actor in actors])
    time.sleep(SETTLE_S)
    before, start = _cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    share = _share_since(before, start)
    for actor in actors:
        ray.kill(actor)
    return share


async def server(seconds: float) -> float:
    """The same for this process and all below it, while a server runs on this loop."""
    await asyncio.sleep(SETTLE_S)
    before, start = _cpu_seconds(), time.monotonic()
    await asyncio.sleep(seconds)
    return _share_since(before, start)


def _cpu_seconds() -> dict[int, float]:
    """Of each process of ours so far."""
    me = psutil.Process()
    found = {}
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # it has just ended
        found[process.pid] = times.user + times.system
    return found


def _share_since(before: dict[int, float], start: float) -> float:
    used = sum(seconds - before.get(pid, 0.0) for pid, seconds in _cpu_seconds().items())
    return used / (time.monotonic() - start)
