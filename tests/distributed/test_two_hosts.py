"""Ranks on different hosts: the step channel over TCP, store and gloo on each host's own address.

Two loopback addresses stand for two hosts, two threads for their processes.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from headway.cluster.shard_actor import ShardActor
from headway.core.config import EngineConfig
from headway.core.request import EngineRequest
from headway.core.sampling import SamplingParams
from headway.engine.build import solo_engine
from headway.link.sync_client import SyncReplicaLink
from headway.model.folder import resolve

HOSTS = ["127.0.0.1", "127.0.0.2"]
REQUEST = EngineRequest(
    request_id="r", prompt_ids=(5, 6, 7), sampling=SamplingParams(temperature=0, max_tokens=20), seed=0
)


class LocatedActor(ShardActor):
    """Knows its place without asking Ray."""

    def locate(self) -> str:
        self._device = torch.device("cpu")
        return HOSTS[self._rank]


def tokens_of(submit: Callable[[EngineRequest], None], step: Callable[[], Any]) -> list[int]:
    submit(REQUEST)
    tokens: list[int] = []
    while True:
        for event in step():
            assert event.error is None, event.error
            tokens.append(event.token_id)
            if event.terminal:
                return tokens


def test_two_hosts_meet_over_tcp_and_give_the_tokens_of_one() -> None:
    config = EngineConfig(tp=2, device="cpu", num_pages=32, max_num_rows=4)
    actors = [LocatedActor(rank, "demo", config) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:

        def both(method: str, *arguments: Any) -> list[Any]:
            return list(pool.map(lambda actor: getattr(actor, method)(*arguments), actors))

        assert both("locate") == HOSTS
        rendezvous = actors[0].open(HOSTS)
        assert rendezvous.endpoint.host == HOSTS[0]
        assert rendezvous.endpoint.port > 0
        both("meet", HOSTS, rendezvous)
        both("load")
        leader, follower = both("begin", (32,), HOSTS[0], "secret")
        assert follower is None
        link = SyncReplicaLink(leader.address, "secret")
        found = tokens_of(link.submit, link.next_events)
        link.close()
        both("stop")

    engine = solo_engine(resolve("demo"), EngineConfig(device="cpu", num_pages=32, max_num_rows=4))
    assert found == tokens_of(engine.submit, engine.step)
    engine.close()
