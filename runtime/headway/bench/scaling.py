"""A replica on Ray at one tensor-parallel size: start-up phases and decoding speed through the link."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from headway.bench.decode import check_fits
from headway.cluster.gang import Gang
from headway.cluster.session import RaySession
from headway.core.config import EngineConfig
from headway.core.request import EngineRequest
from headway.core.sampling import SamplingParams
from headway.link.sync_client import SyncReplicaLink


@dataclass(frozen=True, kw_only=True)
class ScalingFigures:
    tp: int
    device: str
    num_streams: int
    start_s: float
    ms_per_token: float
    tokens_per_s: float


def measure(
    session: RaySession,
    model: str,
    config: EngineConfig,
    prompt: Sequence[int],
    *,
    num_streams: Sequence[int],
    num_tokens: int,
) -> list[ScalingFigures]:
    """Start a replica, decode with each number of streams (once to warm up, once timed), stop it."""
    gang = Gang(session, model, config)
    try:
        replica = gang.start()
        check_fits(len(prompt), num_tokens, replica.info.max_model_len)
        link = SyncReplicaLink(replica.target, replica.token)
        found = []
        for number in num_streams:
            _decode(link, prompt, number, num_tokens)
            seconds = _decode(link, prompt, number, num_tokens)
            found.append(
                ScalingFigures(
                    tp=config.tp,
                    device=replica.info.device,
                    num_streams=number,
                    start_s=sum(replica.phases.values()),
                    ms_per_token=1e3 * seconds / (num_tokens - 1),
                    tokens_per_s=number * (num_tokens - 1) / seconds,
                )
            )
        link.close()
        return found
    finally:
        gang.stop()


def _decode(link: SyncReplicaLink, prompt: Sequence[int], num_streams: int, num_tokens: int) -> float:
    """Seconds from the moment at which every stream has its first token to the last token."""
    sampling = SamplingParams(temperature=0, max_tokens=num_tokens)
    waiting = {f"{time.monotonic_ns()}-{index}" for index in range(num_streams)}
    running = set(waiting)
    for request_id in waiting:
        link.submit(EngineRequest(request_id=request_id, prompt_ids=tuple(prompt), sampling=sampling, seed=0))
    start = time.perf_counter()
    while running:
        for event in link.next_events():
            if event.request_id in waiting:
                waiting.discard(event.request_id)
                start = time.perf_counter()
            if event.terminal:
                running.discard(event.request_id)
    return time.perf_counter() - start
