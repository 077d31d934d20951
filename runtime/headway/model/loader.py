"""A rank's weights from disk to its device: each tensor allocated once, filled slice by slice.

The host's memory peaks at the rank's tensors (when they live there) plus about one tensor of the file:
pages of a mapped file count as memory in use, so files are mapped anew every few reads.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from headway.core.errors import ModelError
from headway.model.checkpoint import TensorInfo, read_checkpoint
from headway.model.reads import Read
from headway.model.weights import ShardPlan

Progress = Callable[[int, int], None]
MAPPED_BYTES = 16 << 20  # read through one mapping before it is dropped, unless one read takes more


def load(
    folder: Path,
    plan: ShardPlan,
    rank: int,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of `rank`, named and shaped as headway.model.weights says, as `dtype` on `device`.

    progress: called as (bytes read, bytes to read) after each read. Raises ModelError for a folder that
    is broken or does not hold what `plan` needs; checked before anything is allocated.
    """
    checkpoint = plan.named(read_checkpoint(folder))
    plan.check(checkpoint)
    rank_plan = plan.rank(rank)
    tensors = {
        name: torch.empty(shape, dtype=dtype, device=device) for name, shape in rank_plan.targets.items()
    }
    total = rank_plan.source_bytes(checkpoint)
    done = 0
    for file, reads in _batches(rank_plan.reads, checkpoint):
        for num_bytes in _fill(tensors, file, reads, checkpoint):
            done += num_bytes
            if progress is not None:
                progress(done, total)
    return tensors


def _fill(
    tensors: Mapping[str, torch.Tensor],
    file: Path,
    reads: list[Read],
    checkpoint: Mapping[str, TensorInfo],
) -> Iterator[int]:
    """Copy `reads` out of `file`; yields the bytes of each."""
    try:
        with safe_open(file, framework="pt", device="cpu") as source:
            for read in reads:
                block = source.get_slice(checkpoint[read.source].name)[_slices(read.ranges)]
                _copy(tensors[read.target][_slices(read.place)], block, read)
                yield block.nbytes
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error


def _copy(target: torch.Tensor, block: torch.Tensor, read: Read) -> None:
    if read.transposed:
        block = block.mT
    if read.turns > 1:
        rows = len(read.place) - 1
        before, behind = block.shape[:rows], block.shape[rows + 1 :]
        block = block.view(*before, -1, read.turns, *behind).transpose(rows, rows + 1)
        target = target.view(*before, read.turns, -1, *behind)
    target.copy_(block)


def _slices(ranges: tuple[range, ...]) -> tuple[slice, ...]:
    return tuple(slice(one.start, one.stop) for one in ranges)


def _batches(
    reads: tuple[Read, ...], checkpoint: Mapping[str, TensorInfo]
) -> Iterator[tuple[Path, list[Read]]]:
    """`reads` in the order of the files' bytes, as many at a time as one mapping serves."""
    batch: list[Read] = []
    mapped = 0
    for read in sorted(reads, key=lambda read: _place(checkpoint[read.source])):
        info = checkpoint[read.source]
        size = _mapped_bytes(read, info)
        if batch and (checkpoint[batch[0].source].file != info.file or mapped + size > MAPPED_BYTES):
            yield checkpoint[batch[0].source].file, batch
            batch, mapped = [], 0
        batch.append(read)
        mapped += size
    if batch:
        yield checkpoint[batch[0].source].file, batch


def _place(info: TensorInfo) -> tuple[Path, int]:
    return info.file, info.offset


def _mapped_bytes(read: Read, info: TensorInfo) -> int:
    """Bytes of the file that come into memory: whole rows, as a row is often shorter than a page."""
    return info.num_bytes * len(read.ranges[0]) // info.shape[0]
