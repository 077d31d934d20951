"""What can be known to fail before Ray is started: a mistake then costs a second, not ten."""

from dataclasses import dataclass
from pathlib import Path

from headway.cluster.session import LOCAL
from headway.core.config import EngineConfig
from headway.core.errors import StartError, counted
from headway.model.checkpoint import read_checkpoint
from headway.model.folder import pinned, read_spec, resolve
from headway.model.spec import DecoderSpec
from headway.model.weights import shard_plan


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model, resolved once: front end and ranks must not have files of different revisions.

    folder: its files on this host. source: what the ranks are to resolve to the same files.
    """

    folder: Path
    source: str
    spec: DecoderSpec


def preflight(model: str, config: EngineConfig, *, ray: str = "local", num_replicas: int = 1) -> FoundModel:
    """Where `model` is, after every check that needs neither Ray nor, without GPUs, torch.

    ray: as for RaySession. Weights and GPUs are looked at only where the ranks are to be on this host.
    Raises ModelError, ConfigError, StartError.
    """
    folder = resolve(model)
    spec = read_spec(folder)
    plan = shard_plan(spec, config.tp)
    config.model_len(spec.max_model_len)
    if ray in LOCAL:
        plan.check(read_checkpoint(folder))
        _check_gpus(config, num_replicas)
    source = str(folder) if ray in LOCAL else pinned(model, folder)
    return FoundModel(folder=folder, source=source, spec=spec)


def _check_gpus(config: EngineConfig, num_replicas: int) -> None:
    if config.device != "cuda":
        return
    import torch

    needed, found = config.tp * num_replicas, torch.cuda.device_count()
    if found < needed:
        what = f"tp={config.tp}" if num_replicas == 1 else f"{num_replicas} replicas of tp={config.tp}"
        raise StartError(f"{what} on device=cuda needs {counted(needed, 'GPU')}, this host has {found}")
