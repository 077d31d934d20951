"""From shards to an engine: settle the pages that every rank can have, then wire the parts."""

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
from headway.worker.shard import Shard, pick_device


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What a loaded shard can tell, as plain values that travel between processes."""

    num_pages: int
    page_bytes: int
    weight_bytes: int
    budget: str


def shard_facts(shard: Shard, report: Report = silent) -> ShardFacts:
    """Warm the shard up and size its pool. Every rank on a GPU must call it together.

    Raises StartError if no page fits, or not as many as the settings ask for.
    """
    budget = shard.budget(partial(report, KERNELS))
    num_pages = shard.config.num_pages or budget.num_pages
    budget.check(num_pages)
    return ShardFacts(
        num_pages=num_pages,
        page_bytes=shard.page_bytes,
        weight_bytes=shard.weight_bytes,
        budget=str(budget),
    )


def build_engine(shard: Shard, ranks: Ranks, num_pages: int) -> Engine:
    """The engine of a replica whose rank 0 is `shard`, with `num_pages` a group on every rank."""
    config, spec = shard.config, shard.spec
    scheduler = Scheduler(
        num_pages=(num_pages,) * len(spec.windows),
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
        num_pages=num_pages,
        pool_bytes=num_pages * shard.page_bytes,
    )
    return Engine(scheduler=scheduler, ranks=ranks, info=info)


def solo_engine(folder: Path, config: EngineConfig, report: Report = silent) -> Engine:
    """One rank in this process. Raises ModelError, ConfigError, StartError."""
    device = pick_device(config.device)
    shard = Shard(folder, config, SoloCollectives(), device, partial(report, WEIGHTS))
    num_pages = shard_facts(shard, report).num_pages
    return build_engine(shard, SoloRanks(shard.ready(num_pages)), num_pages)


def thread_engine(folder: Path, config: EngineConfig) -> Engine:
    """`config.tp` ranks as threads of this process, on the CPU: for tests."""
    groups = ThreadCollectives.group(config.tp)
    shards = [Shard(folder, config, group, torch.device("cpu")) for group in groups]
    num_pages = min(shard_facts(shard).num_pages for shard in shards)
    ranks = [shard.ready(num_pages) for shard in shards]
    return build_engine(shards[0], ThreadRanks(ranks), num_pages)
