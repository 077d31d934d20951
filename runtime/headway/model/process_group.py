"""Collectives between processes: gloo on CPUs, NCCL on GPUs, without torch's process-wide default group.

Ranks find each other through a small TCP store that rank 0 hosts. The store and gloo listen on the given
host alone: on loopback when all ranks share one.
"""

import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from headway.core.errors import ReplicaError, StartError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, Work

c10d: Any = torch.distributed  # the stubs of its C++ classes lack half of what is used here


class _Group(Protocol):
    """What is used of a backend; each call starts an operation that must be waited for."""

    def allreduce(self, tensors: list[Tensor]) -> "Work": ...
    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor]) -> "Work": ...
    def abort(self) -> None: ...


def host_store(host: str, timeout_s: float = 60.0) -> "tuple[Store, int]":
    """A store that listens on `host` and a free port, and that port. It serves while the object lives."""
    try:
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise StartError(f"cannot listen on {host}: {error.strerror}") from error
    port = int(listener.getsockname()[1])
    store = c10d.TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),  # the store owns it now; its own would be on every interface
    )
    return store, port


def join_store(host: str, port: int, timeout_s: float = 60.0) -> "Store":
    """The store that rank 0 hosts. Raises StartError if it cannot be reached in time."""
    timeout = timedelta(seconds=timeout_s)
    try:
        store: Store = c10d.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
    except RuntimeError as error:
        raise StartError(f"no rank 0 at {host}:{port} within {timeout_s:g} s") from error
    return store


class ProcessGroupCollectives:
    """One rank of a group of processes.

    store: from `host_store` on rank 0, from `join_store` on the others.
    host: this rank's own address, which gloo listens on.
    device: decides the backend; a GPU must be the one that this rank computes on.
    timeout_s: an operation that waits longer fails. (NCCL then ends the process; the gang restarts anyway.)

    Raises StartError if the ranks do not meet in time.
    """

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
        self.rank = rank
        self.world_size = world_size
        self._store: Store | None = store  # rank 0's is the server: it must outlive the meeting
        self._device = device
        self._timeout_s = timeout_s
        self._group: _Group | None = None
        timeout = timedelta(seconds=timeout_s)
        try:
            if device.type == "cuda":
                self._group = _nccl(store, rank, world_size, device, timeout)
            else:
                self._group = _gloo(store, rank, world_size, host, timeout)
            self.barrier()
        except (RuntimeError, ReplicaError) as error:
            text = f"rank {rank}: the {world_size} ranks did not meet within {timeout_s:g} s"
            raise StartError(text) from error

    def all_reduce(self, x: Tensor) -> Tensor:
        self._run("all_reduce", lambda group: group.allreduce([x]))
        return x

    def gather_vocab(self, logits_NV: Tensor, sizes: Sequence[int]) -> Tensor:
        # gloo gathers equal shapes only
        padded_NV = F.pad(logits_NV, (0, max(sizes) - logits_NV.shape[-1])).contiguous()
        parts = [torch.empty_like(padded_NV) for _ in sizes]
        self._run("gather_vocab", lambda group: group.allgather([parts], [padded_NV]))
        return torch.cat([part_NV[..., :size] for part_NV, size in zip(parts, sizes, strict=True)], -1)

    def barrier(self) -> None:
        self.all_reduce(torch.zeros(1, device=self._device))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def close(self) -> None:
        group, self._group, self._store = self._group, None, None  # gloo's connections end with the object
        if group is not None and self._device.type == "cuda":
            group.abort()

    def _run(self, name: str, start: "Callable[[_Group], Work]") -> None:
        if self._group is None:
            raise ReplicaError(f"rank {self.rank}: {name} failed: this rank has left")
        try:
            start(self._group).wait()
        except RuntimeError as error:
            self.close()  # or ranks that wait for this one, not for the dead, would wait for the timeout
            # torch tells a dead peer from a late one in words only
            late = "timed out" in str(error).lower()
            cause = f"waited {self._timeout_s:g} s for the other ranks" if late else "another rank is gone"
            raise ReplicaError(f"rank {self.rank}: {name} failed: {cause}") from error


def _gloo(store: "Store", rank: int, world_size: int, host: str, timeout: timedelta) -> _Group:
    options = c10d.ProcessGroupGloo._Options()
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    group: _Group = c10d.ProcessGroupGloo(store, rank, world_size, options)
    return group


def _nccl(store: "Store", rank: int, world_size: int, device: torch.device, timeout: timedelta) -> _Group:
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timeout
    with torch.cuda.device(device):
        group: _Group = c10d.ProcessGroupNCCL(store, rank, world_size, options)
    return group
