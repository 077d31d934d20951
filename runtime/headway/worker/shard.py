"""A rank in the making: weights first, then the pool sized by what is left, then the rank itself.

All ranks must agree on the number of pages, so it is settled between `budget` and `ready`, by whoever
starts them.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import psutil
import torch

from headway.core.config import EngineConfig
from headway.core.errors import StartError
from headway.core.step import StepPlan
from headway.model.collectives import Collectives
from headway.model.decoder import Decoder
from headway.model.folder import read_spec
from headway.model.loader import Progress, load
from headway.model.weights import shard_plan
from headway.sharding.pages import PageGroup, page_groups, pool_bytes
from headway.worker.kv_pool import KvPool, PoolBudget
from headway.worker.rank import Rank
from headway.worker.warm_up import num_pages, warm_up_plans

# By kind of device; imported where it is used, since Triton is not to be had everywhere.
OPS = {"cpu": "headway_kernels.reference", "cuda": "headway_kernels.gpu"}
CGROUP = Path("/sys/fs/cgroup")


def pick_device(name: str, index: int = 0) -> torch.device:
    """ "auto", "cpu" or "cuda" to a device. Raises StartError for a GPU that is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise StartError(f"GPU {index} is needed, this host has {torch.cuda.device_count()}")
    return torch.device("cuda", index)


def pick_dtype(name: str, checkpoint: str, device: torch.device) -> torch.dtype:
    """ "auto" takes float32 on a CPU, where half precision is slow, and the checkpoint's dtype on a GPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else checkpoint
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


class Shard:
    """One rank's part of the model in `folder`, loaded on `device`.

    Raises ModelError for a folder that cannot be served, ConfigError for settings that do not fit it,
    StartError if the device's memory is too small.
    """

    def __init__(
        self,
        folder: Path,
        config: EngineConfig,
        collectives: Collectives,
        device: torch.device,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.spec = read_spec(folder)
        self.dtype = pick_dtype(config.dtype, self.spec.dtype, device)
        self.max_model_len = config.model_len(self.spec.max_model_len)
        self._collectives = collectives
        self._plan = shard_plan(self.spec, collectives.world_size)
        mine = self._plan.rank(collectives.rank)
        self._heads = mine.heads
        try:
            params = load(
                folder, self._plan, collectives.rank, device=device, dtype=self.dtype, progress=progress
            )
        except torch.OutOfMemoryError as error:
            need = mine.target_bytes(self.dtype.itemsize) / 2**30
            raise StartError(
                f"no memory for the weights: rank {collectives.rank} needs {need:.1f} GiB"
            ) from error
        self.weight_bytes = sum(tensor.nbytes for tensor in params.values())
        self._ops = import_module(OPS[device.type])
        self._decoder = Decoder(self.spec, mine.heads, params, mine.vocab, collectives, self._ops)

    @property
    def page_groups(self) -> tuple[PageGroup, ...]:
        sizes = self.spec.page_bytes(
            num_kv_heads=self._heads.num_kv_heads,
            page_size=self.config.page_size,
            dtype_bytes=self.dtype.itemsize,
        )
        return page_groups(self.spec.windows, sizes, self.config, self.max_model_len)

    def budget(self, ranks_on_host: int = 1, progress: Progress = lambda done, total: None) -> PoolBudget:
        """What is left for pages here. On a GPU every rank must call it together: it runs the warm-up.

        ranks_on_host: that share the host's memory, of whatever replica; each has its weights already.
        progress: called as (steps run, steps to run) of the warm-up.
        """
        if self.device.type == "cpu":
            total, taken = free_bytes() // ranks_on_host, 0  # that is net of the weights already
            activations = _cpu_activations(self)
        else:
            activations = self._measure_activations(progress)
            free, total = torch.cuda.mem_get_info(self.device)
            taken = total - free
        return PoolBudget(
            total=total,
            fraction=self.config.memory_fraction,
            taken=taken,
            activations=activations + self._decode_bytes,
            groups=self.page_groups,
        )

    @property
    def _decode_bytes(self) -> int:
        """What a step of decoding needs of its own, which no warm-up shows: its contexts are short."""
        needed = self._ops.decode_bytes(
            num_seqs=self.config.max_num_rows,
            context_len=self.max_model_len,
            num_kv_heads=self._heads.num_kv_heads,
            head_dim=self.spec.head_dim,
            dtype=self.dtype,
        )
        assert isinstance(needed, int)
        return needed

    def warm_up_plans(self) -> tuple[StepPlan, ...]:
        """The same on every rank; all of them must call it together."""
        return warm_up_plans(
            self.config,
            max_model_len=self.max_model_len,
            num_groups=len(self.spec.windows),
            sizes=self._step_sizes() if self.spec.experts else (),
        )

    def _step_sizes(self) -> tuple[int, ...]:
        """Numbers of tokens with kernels of their own on some rank: uneven shards of experts may differ."""
        most = self.config.max_num_tokens
        wanted = torch.zeros(most + 1, device=self.device)
        wanted[list(self._decoder.step_sizes(most))] = 1
        return tuple(self._collectives.all_reduce(wanted).nonzero()[:, 0].tolist())

    def ready(self, num_pages: Sequence[int]) -> Rank:
        """The rank, with a pool of `num_pages`, a number a page group."""
        try:
            pool = KvPool(
                self.spec,
                num_pages=num_pages,
                num_kv_heads=self._heads.num_kv_heads,
                page_size=self.config.page_size,
                dtype=self.dtype,
                device=self.device,
            )
        except (torch.OutOfMemoryError, RuntimeError) as error:
            size = pool_bytes(num_pages, self.page_groups) / 2**30
            raise StartError(f"no memory for {sum(num_pages):,} KV pages ({size:.1f} GiB)") from error
        return Rank(
            decoder=self._decoder,
            collectives=self._collectives,
            pool=pool,
            vocab_sizes=[len(vocab) for vocab in self._plan.vocab],
            max_num_rows=self.config.max_num_rows,
            max_model_len=self.max_model_len,
            device=self.device,
            ops=self._ops,
        )

    def _measure_activations(self, progress: Progress) -> int:
        """Peak bytes of the warm-up's steps beyond what is held before them, and what they leave cached."""
        num_groups, plans = len(self.spec.windows), self.warm_up_plans()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        rank = self.ready((num_pages(plans),) * num_groups)
        pool_bytes = rank.pool.num_bytes
        try:
            for index, plan in enumerate(plans):
                progress(index, len(plans))
                rank.launch(plan).result()
        except torch.OutOfMemoryError as error:
            raise StartError(
                f"no memory for a step of max_num_tokens={self.config.max_num_tokens} tokens and "
                f"max_num_rows={self.config.max_num_rows} rows; fewer take less"
            ) from error
        progress(len(plans), len(plans))
        peak = torch.cuda.max_memory_allocated(self.device) - before - pool_bytes
        del rank
        torch.cuda.empty_cache()
        return peak


def free_bytes() -> int:
    """The host's memory that can be had, within the limit of a container's control group."""
    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text()) - _reclaimable()
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(min(free, int(limit) - used), 0)


def _reclaimable() -> int:
    """Bytes of files that the control group has cached and would drop: checkpoints just read, above all."""
    for line in (CGROUP / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _cpu_activations(shard: Shard) -> int:
    """An estimate for the host: a step's widest tensors in float32, a few of each alive at once. Scores,
    which soft caps and sinks lay out in full, are not in it.
    """
    spec = shard.spec
    mlp = max(spec.mlp_size, spec.experts.top_k * spec.experts.mlp_size if spec.experts else 0)
    width = 4 * spec.hidden_size + 4 * mlp + 2 * spec.vocab_size
    return 4 * shard.config.max_num_tokens * width // shard._collectives.world_size
