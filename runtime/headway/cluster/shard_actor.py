"""A process of a replica: one rank, and on the leader (rank 0) the engine and its end of the link.

A plain class: whoever creates it makes it a Ray actor. Its methods are called once each, in the order in
which they stand here, on every rank at once; `progress` may be called at any time.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from headway.core import env
from headway.core.config import EngineConfig
from headway.core.progress import WEIGHTS
from headway.core.request import ReplicaInfo
from headway.engine.build import ShardFacts, build_engine, shard_facts
from headway.engine.channel import ChannelListener, Connection, Endpoint, join
from headway.engine.loop import EngineLoop
from headway.engine.processes import ProcessRanks, follow, watch
from headway.link.server import ReplicaServer
from headway.model.folder import resolve
from headway.model.peer_group import PeerCollectives
from headway.model.process_group import host_store, join_store
from headway.worker.rank import Rank
from headway.worker.shard import Shard, pick_device

LOOPBACK = "127.0.0.1"
CHANNEL_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Where the ranks of a replica meet. Everything is on loopback when they share one host."""

    endpoint: Endpoint
    secret: bytes
    store_port: int


@dataclass(frozen=True, kw_only=True)
class Service:
    """The leader's end of the link, and what the replica is."""

    address: str
    info: ReplicaInfo


class ShardActor:
    """Rank `rank` of a replica of `model`."""

    def __init__(self, rank: int, model: str, config: EngineConfig) -> None:
        self._rank = rank
        self._model = model
        self._config = config
        self._progress: tuple[str, int, int] = (WEIGHTS, 0, 0)
        self._listener: ChannelListener | None = None
        self._channel: list[Connection] = []
        self._loop: EngineLoop | None = None
        self._server: ReplicaServer | None = None

    def locate(self) -> str:
        """The address of this rank's host; by answering, the rank says that its process is up."""
        import ray

        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        self._device = pick_device(
            self._config.device if gpus else "cpu", env.gpu_index(gpus[0]) if gpus else 0
        )
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

    def open(self, hosts: list[str]) -> Rendezvous:
        """On the leader: let the other ranks in. `hosts`: every rank's address."""
        self._single_host = len(set(hosts)) == 1
        self._listener = ChannelListener(None if self._single_host else hosts[0])
        self._store, port = host_store(self._address(hosts[0]), CHANNEL_TIMEOUT_S)
        return Rendezvous(endpoint=self._listener.endpoint, secret=self._listener.secret, store_port=port)

    def meet(self, hosts: list[str], rendezvous: Rendezvous) -> None:
        """Join the step channel and the collectives. Raises StartError if a rank does not come."""
        self._host = hosts[self._rank]
        self._single_host = len(set(hosts)) == 1
        if self._device.type == "cpu":
            torch.set_num_threads(max(torch.get_num_threads() // hosts.count(self._host), 1))
        if self._listener is not None:
            self._channel = self._listener.accept(len(hosts) - 1, CHANNEL_TIMEOUT_S)
        else:
            self._channel = [join(rendezvous.endpoint, rendezvous.secret, self._rank, CHANNEL_TIMEOUT_S)]
            self._store = join_store(self._address(hosts[0]), rendezvous.store_port, CHANNEL_TIMEOUT_S)
        self._collectives = PeerCollectives(
            self._store,
            self._rank,
            len(hosts),
            host=self._address(self._host),
            device=self._device,
            timeout_s=self._config.step_timeout_s,
        )

    def load(self) -> None:
        """Read this rank's weights. Raises ModelError, ConfigError, StartError."""
        note = partial(self._note_progress, WEIGHTS)
        self._shard = Shard(resolve(self._model), self._config, self._collectives, self._device, note)

    def warm_up(self, ranks_on_host: Mapping[str, int]) -> ShardFacts:
        """On a GPU compile the kernels; size the pool. Raises StartError where no page fits.

        ranks_on_host: by the address of a host, the ranks that share its memory.
        """
        return shard_facts(self._shard, ranks_on_host[self._host], self._note_progress)

    def begin(self, num_pages: tuple[int, ...], link_host: str, token: str) -> Service | None:
        """Take up work; the leader returns where its link listens. num_pages: of each page group."""
        rank = self._shard.ready(num_pages)
        if self._rank:
            threading.Thread(target=self._follow, args=(rank,), name="follow", daemon=True).start()
            return None
        engine = build_engine(self._shard, ProcessRanks(rank, self._channel), num_pages)
        self._loop = EngineLoop(engine, on_end=self._leave)
        watch(self._channel, self._loop.lose)
        self._server = ReplicaServer(self._loop, address=f"{link_host}:0", token=token)
        return Service(address=self._server.address, info=engine.info)

    def stop(self) -> None:
        """Finish the running step and leave. The leader's going ends the followers."""
        if self._server is not None:
            self._server.stop()
        if self._loop is not None:
            self._loop.stop()

    def _leave(self, failure: str | None) -> None:
        """The engine has ended: break the link, so that front ends know, and know why."""
        if self._server is not None:
            self._server.stop(failure)

    def progress(self) -> tuple[str, int, int]:
        """What is being done, how much of it is, and how much there is to do."""
        return self._progress

    def _note_progress(self, what: str, done: int, total: int) -> None:
        self._progress = (what, done, total)

    def _follow(self, rank: Rank) -> None:
        follow(rank, self._channel[0])

    def _address(self, host: str) -> str:
        return LOOPBACK if self._single_host else host
