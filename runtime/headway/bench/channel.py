"""How long it takes to reach two ranks and hear back: the step channel beside Ray's own two ways.

With the channel the leader is one of the ranks, so one message goes out; Ray's caller is neither, so two do.
One rank's figures by a compiled graph are told, too.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from headway.bench.timing import microseconds
from headway.cluster.session import RaySession
from headway.engine.channel import ChannelListener, Connection, Endpoint, join

NUM_WARMUP = 200
TIMEOUT_S = 30.0


class EchoActor:
    """A process that answers, by whichever way it is asked."""

    def echo(self, frame: bytes) -> bytes:
        return frame

    def join(self, endpoint: Endpoint, secret: bytes) -> None:
        link = join(endpoint, secret, 1, TIMEOUT_S)
        threading.Thread(target=_answer, args=(link,), daemon=True).start()


def _answer(link: Connection) -> None:
    while (frame := link.receive()) is not None:
        link.send(frame)


def round_trips(session: RaySession, *, num_bytes: int, num_trips: int) -> dict[str, dict[str, float]]:
    """Median and 99th percentile in microseconds of each way, for a frame of `num_bytes`."""
    frame = bytes(num_bytes)
    ray = session.ray
    actors = [ray.remote(EchoActor).options(num_cpus=0.1).remote() for _ in range(2)]
    found = {
        "step channel, 2 ranks": _channel(ray, actors[0], frame, num_trips),
        "ray call, 2 ranks": _time(
            lambda: ray.get([actor.echo.remote(frame) for actor in actors]), num_trips
        ),
        "ray compiled graph, 1 rank": _compiled(ray, actors[:1], frame, num_trips),
        "ray compiled graph, 2 ranks": _compiled(ray, actors, frame, num_trips),
    }
    for actor in actors:
        ray.kill(actor)
    return found


def _channel(ray: Any, actor: Any, frame: bytes, num_trips: int) -> dict[str, float]:
    listener = ChannelListener(None)
    joined = actor.join.remote(listener.endpoint, listener.secret)
    (link,) = listener.accept(1, TIMEOUT_S)
    ray.get(joined)

    def trip() -> None:
        link.send(frame)
        link.receive()

    figures = _time(trip, num_trips)
    link.close()
    return figures


def _compiled(ray: Any, actors: Sequence[Any], frame: bytes, num_trips: int) -> dict[str, float]:
    from ray.dag import InputNode, MultiOutputNode

    with InputNode() as given:
        graph = MultiOutputNode([actor.echo.bind(given) for actor in actors]).experimental_compile()
    figures = _time(lambda: ray.get(graph.execute(frame)), num_trips)
    graph.teardown()
    return figures


def _time(trip: Callable[[], Any], num_trips: int) -> dict[str, float]:
    samples = []
    for index in range(NUM_WARMUP + num_trips):
        start = time.perf_counter()
        trip()
        if index >= NUM_WARMUP:
            samples.append(time.perf_counter() - start)
    return microseconds(samples)
