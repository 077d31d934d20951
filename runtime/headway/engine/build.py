"""From shards to an engine: settle the pages that every rank can have, then wire the parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from headway.core.config import EngineConfig
from headway.core.progress import KERNELS, WEIGHTS, Report, silent
from headway.core.request import ReplicaInfo
from headway.engine.engine import Engine
from headway.engine.local import SoloRanks, ThreadRanks
from headway.engine.ranks import Ranks
from headway.model.collectives import SoloCollectives, ThreadCollectives
from headway.scheduler.scheduler import Scheduler
from headway.sharding.pages import PageGroup, pool_bytes
from headway.worker.shard import Shard, pick_device


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What a loaded shard can tell, as plain values that travel between processes.

    num_pages: that it has memory for, an entry a page group; so have `groups`.
    """

    num_pages: tuple[int, ...]
    groups: tuple[PageGroup, ...]
    weight_bytes: int
    budget: str


def shard_facts(shard: Shard, ranks_on_host: int = 1, report: Report = silent) -> ShardFacts:
    """Warm the shard up and size its pool. Every rank on a GPU must call it together.

    ranks_on_host: that share the memory of its host, this one included.
    Raises StartError if no page fits, or not as many as the settings ask for.
    """
    budget = shard.budget(ranks_on_host, partial(report, KERNELS))
    return ShardFacts(
        num_pages=budget.num_pages(shard.config),
        groups=budget.groups,
        weight_bytes=shard.weight_bytes,
        budget=budget.describe(shard.config),
    )


def agree(shards: Sequence[ShardFacts]) -> tuple[int, ...]:
    """The pages of each group that every rank has memory for."""
    return tuple(map(min, zip(*(shard.num_pages for shard in shards), strict=True)))


def build_engine(shard: Shard, ranks: Ranks, num_pages: tuple[int, ...]) -> Engine:
    """The engine of a replica whose rank 0 is `shard`; every rank has `num_pages`, a number a page group."""
    config, spec = shard.config, shard.spec
    scheduler = Scheduler(
        num_pages=num_pages,
        windows=spec.windows,
        page_size=config.page_size,
        max_num_rows=config.max_num_rows,
        max_num_tokens=config.max_num_tokens,
        max_model_len=shard.max_model_len,
    )
    device = shard.device
    info = ReplicaInfo(
        world_size=config.tp,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        dtype=str(shard.dtype).removeprefix("torch."),
        vocab_size=spec.vocab_size,
        max_model_len=scheduler.max_model_len,
        page_size=config.page_size,
        num_pages=max(num_pages),
        pool_bytes=pool_bytes(num_pages, shard.page_groups),
    )
    return Engine(scheduler=scheduler, ranks=ranks, info=info)


def solo_engine(folder: Path, config: EngineConfig, report: Report = silent) -> Engine:
    """One rank in this process. Raises ModelError, ConfigError, StartError."""
    device = pick_device(config.device)
    shard = Shard(folder, config, SoloCollectives(), device, partial(report, WEIGHTS))
    num_pages = shard_facts(shard, report=report).num_pages
    return build_engine(shard, SoloRanks(shard.ready(num_pages)), num_pages)


def thread_engine(folder: Path, config: EngineConfig) -> Engine:
    """`config.tp` ranks as threads of this process, on the CPU: for tests."""
    groups = ThreadCollectives.group(config.tp)
    shards = [Shard(folder, config, group, torch.device("cpu")) for group in groups]
    num_pages = agree([shard_facts(shard, ranks_on_host=config.tp) for shard in shards])
    ranks = [shard.ready(num_pages) for shard in shards]
    return build_engine(shards[0], ThreadRanks(ranks), num_pages)
