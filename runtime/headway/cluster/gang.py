"""A replica's ranks as one: placed, started and stopped together.

Ray is needed to start and to stop; once the ranks have met, no token passes through it.
"""

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from headway.cluster.session import RaySession
from headway.cluster.shard_actor import LOOPBACK, ShardActor
from headway.core.config import EngineConfig
from headway.core.env import ACTOR_VARIABLES
from headway.core.errors import HeadwayError, StartError, counted
from headway.core.progress import Report, silent
from headway.core.request import ReplicaInfo
from headway.engine.build import ShardFacts, agree

PLACE_TIMEOUT_S = 25.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.1
CPUS_PER_RANK = {"cpu": 0.1, "cuda": 1.0}  # a rank on a GPU wants a core; ranks on a CPU share what there is


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A replica that takes requests at `target`, and how long each phase of its start took in seconds.

    num_pages: of each page group, on every rank.
    """

    target: str
    token: str
    info: ReplicaInfo
    num_pages: tuple[int, ...]
    shards: tuple[ShardFacts, ...]
    phases: dict[str, float]


class Gang:
    """The ranks of one replica. A start either ends with all of them at work or leaves none behind.

    `start` is `load` and `begin`. Where replicas start together, each must have loaded before one begins:
    only then is it known how many ranks share what a host has free, and have all of them taken their weights.
    """

    def __init__(self, session: RaySession, model: str, config: EngineConfig) -> None:
        self._session = session
        self._ray = session.ray
        self._model = model
        self._config = config
        self._group: Any = None
        self._actors: list[Any] = []
        self._hosts: list[str] = []
        self._deadline = 0.0
        self._phases: dict[str, float] = {}

    def start(self, report: Report = silent) -> Replica:
        """Start every rank. report: called with what the ranks do, added up over those that do the same.

        Raises StartError with the cause and the rank if one cannot start, or after
        `config.start_timeout_s`; ModelError and ConfigError as the ranks find them.
        """
        return self.begin(Counter(self.load(report)), report)

    def load(self, report: Report = silent) -> Sequence[str]:
        """Place the ranks and load their weights; returns the address of each rank's host."""
        self._deadline = time.monotonic() + self._config.start_timeout_s
        with self._or_none_left():
            self._phase("place", self._place)
            self._hosts = self._phase("spawn", lambda: self._all("locate"))
            self._phase("meet", self._meet)
            self._phase("load", lambda: self._all("load", report=report))
        return self._hosts

    def begin(self, ranks_on_host: Mapping[str, int], report: Report = silent) -> Replica:
        """Size the pools and take up work.

        ranks_on_host: by address, the loaded ranks that share a host's memory, those of other replicas
            included.
        """
        with self._or_none_left():
            shards = self._phase("warm up", lambda: self._all("warm_up", ranks_on_host, report=report))
            num_pages = agree(shards)
            link_host = LOOPBACK if self._session.local else self._hosts[0]
            token = secrets.token_hex(32)
            services = self._phase("begin", lambda: self._all("begin", num_pages, link_host, token))
        return Replica(
            target=services[0].address,
            token=token,
            info=services[0].info,
            num_pages=num_pages,
            shards=tuple(shards),
            phases=self._phases,
        )

    @contextmanager
    def _or_none_left(self) -> Iterator[None]:
        """Whatever keeps a rank from starting ends them all."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _place(self) -> None:
        """Reserve a place for every rank, then create the actors there."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        needs = self._needs()
        self._group = placement_group([needs] * self._config.tp, strategy="PACK")
        timeout_s = min(PLACE_TIMEOUT_S, self._config.start_timeout_s)
        if not self._group.wait(timeout_seconds=timeout_s):
            raise StartError(
                f"tp={self._config.tp} needs {self._config.tp} x {_describe(needs)}, "
                f"the Ray cluster has {_describe(self._ray.available_resources())} free"
            )
        actor = self._ray.remote(ShardActor)
        self._actors = [
            actor.options(
                num_cpus=needs["CPU"],
                num_gpus=needs.get("GPU", 0),
                max_restarts=0,  # a lost rank has no communicator to come back to
                max_concurrency=2,  # `progress` answers while others run
                runtime_env={"env_vars": ACTOR_VARIABLES},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._group, placement_group_bundle_index=rank
                ),
            ).remote(rank, self._model, self._config)
            for rank in range(self._config.tp)
        ]

    def _needs(self) -> dict[str, float]:
        """What a rank takes of the cluster. "auto" means GPUs where the cluster has any."""
        num_gpus = self._ray.cluster_resources().get("GPU", 0)
        if self._config.device == "cpu" or (self._config.device == "auto" and not num_gpus):
            return {"CPU": CPUS_PER_RANK["cpu"]}
        if self._session.local and num_gpus < self._config.tp:
            raise StartError(
                f"tp={self._config.tp} needs {counted(self._config.tp, 'GPU')}, this host has {num_gpus:g}"
            )
        return {"CPU": CPUS_PER_RANK["cuda"], "GPU": 1.0}

    def _meet(self) -> None:
        rendezvous = self._wait([self._actors[0].open.remote(self._hosts)], "open")[0]
        self._all("meet", self._hosts, rendezvous)

    def _phase(self, name: str, run: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = run()
        self._phases[name] = time.monotonic() - start
        return result

    def _all(self, method: str, *arguments: Any, report: Report | None = None) -> list[Any]:
        """Call `method` on every rank at once."""
        refs = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        return self._wait(refs, method, report)

    def _wait(self, refs: Sequence[Any], method: str, report: Report | None = None) -> list[Any]:
        """The results in order of rank. The first rank that fails decides: the others may wait for it."""
        pending = list(refs)
        while pending:
            done, pending = self._ray.wait(pending, num_returns=1, timeout=POLL_S)
            for ref in done:
                self._result(ref, refs.index(ref), method)
            if report is not None:
                self._tell(report)
            if pending and time.monotonic() > self._deadline:
                late = [refs.index(ref) for ref in pending]
                raise StartError(
                    f"ranks {late} did not finish '{method}' within start_timeout_s "
                    f"({self._config.start_timeout_s:g} s)"
                )
        return [self._result(ref, rank, method) for rank, ref in enumerate(refs)]

    def _result(self, ref: Any, rank: int, method: str) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, HeadwayError):
                raise cause from None
            raise StartError(f"rank {rank} failed in '{method}': {type(cause).__name__}: {cause}") from None
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise StartError(f"rank {rank} died in '{method}': {reason}") from None

    def _tell(self, report: Report) -> None:
        try:
            parts = self._ray.get([actor.progress.remote() for actor in self._actors], timeout=1)
        except self._ray.exceptions.RayError:
            return  # what failed is told by the call that is waited for
        what = parts[0][0]
        parts = [part for part in parts if part[0] == what]
        report(what, sum(done for _, done, _ in parts), sum(total for _, _, total in parts))

    def stop(self) -> None:
        """End every rank: by asking, then by force. Safe to call twice."""
        actors, self._actors = self._actors, []
        group, self._group = self._group, None
        try:
            if actors:
                asked = [actor.stop.remote() for actor in actors]
                self._ray.wait(asked, num_returns=len(asked), timeout=STOP_TIMEOUT_S)
        finally:
            for actor in actors:
                self._ray.kill(actor)
            if group is not None:
                _give_up_after(STOP_TIMEOUT_S, self._ray.util.remove_placement_group, group)


def _give_up_after(seconds: float, call: Callable[..., object], *arguments: object) -> None:
    """Where the cluster's head is gone already, Ray would wait for it for a minute."""
    thread = threading.Thread(target=call, args=arguments, name="give-up-after", daemon=True)
    thread.start()
    thread.join(seconds)


def _describe(resources: dict[str, float]) -> str:
    """Like "0.1 CPU and 1 GPU"."""
    return " and ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU") if kind in resources)
