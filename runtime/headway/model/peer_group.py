"""All-reduce through the memory of GPUs of one host that reach each other; NCCL for all else.

Such an all-reduce is a kernel on the current stream. A rank that has died ends the kernels that wait for it,
and so their processes, after the timeout.
"""

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headway.core.errors import StartError
from headway.model.process_group import ProcessGroupCollectives

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from headway_kernels.peer_memory import PeerMemory

log = logging.getLogger(__name__)

POLLS_PER_S = 1_000_000  # about; a wait is bounded by a number of looks
MOST_RANKS = 8


class PeerCollectives(ProcessGroupCollectives):
    """As ProcessGroupCollectives; the ranks agree on whether their memory is shared."""

    def __init__(
        self,
        store: "Store",
        rank: int,
        world_size: int,
        *,
        host: str,
        device: torch.device,
        timeout_s: float,
    ) -> None:
        self._peers: PeerMemory | None = None
        super().__init__(store, rank, world_size, host=host, device=device, timeout_s=timeout_s)
        if device.type == "cuda" and 1 < world_size <= MOST_RANKS:
            self._peers = _meet(store, rank, world_size, device, timeout_s)

    def all_reduce(self, x: Tensor) -> Tensor:
        if self._peers is not None:
            from headway_kernels.all_reduce import all_reduce, all_reduce_way

            if all_reduce_way(x, self._peers) is not None:
                return all_reduce(x, self._peers, out=x)
        return super().all_reduce(x)

    def close(self) -> None:
        self._peers = None
        super().close()


def _meet(
    store: "Store", rank: int, world_size: int, device: torch.device, timeout_s: float
) -> "PeerMemory | None":
    from headway_kernels.peer_memory import PeerMemory, PeerMemoryError

    try:
        return PeerMemory.meet(
            store, rank, world_size, device=device, max_polls=min(int(timeout_s * POLLS_PER_S), 2**31 - 1)
        )
    except PeerMemoryError as error:
        if rank == 0:
            log.warning("all-reduce goes through NCCL: %s", error)
        return None
    except RuntimeError as error:
        raise StartError(f"rank {rank}: the ranks did not exchange their memory: {error}") from error
