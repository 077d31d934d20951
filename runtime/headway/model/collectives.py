"""What ranks do together. Every rank calls the same operations in the same order.

Shape suffixes: N tokens whose logits are wanted, V vocabulary (a rank's part, or all of it).
"""

import threading
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from headway.core.errors import ReplicaError


class Collectives(Protocol):
    """A rank's way to the others. Everything but `close` raises ReplicaError once a rank is gone or late."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks, written to `x` itself (contiguous, one shape everywhere) and returned."""

    def gather_vocab(self, logits_NV: Tensor, sizes: Sequence[int]) -> Tensor:
        """Every rank's columns side by side, on every rank. `sizes`: how many each rank has."""

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def close(self) -> None:
        """Leave; ranks that still wait for this one fail. Safe to call twice."""


class SoloCollectives:
    """One rank has nobody to wait for."""

    rank = 0
    world_size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def gather_vocab(self, logits_NV: Tensor, sizes: Sequence[int]) -> Tensor:
        return logits_NV

    def barrier(self) -> None:
        pass

    def close(self) -> None:
        pass


class ThreadCollectives:
    """Ranks that are threads of one process, for tests. Sums run in rank order: equal on all, always."""

    def __init__(self, rank: int, world_size: int, meeting: "_Meeting") -> None:
        self.rank = rank
        self.world_size = world_size
        self._meeting = meeting

    @classmethod
    def group(cls, world_size: int, timeout_s: float = 60.0) -> "list[ThreadCollectives]":
        """A rank each, to be used by a thread each."""
        meeting = _Meeting(world_size, timeout_s)
        return [cls(rank, world_size, meeting) for rank in range(world_size)]

    def all_reduce(self, x: Tensor) -> Tensor:
        self._show(x)
        total = self._meeting.shown[0].clone()
        for other in self._meeting.shown[1:]:
            total += other
        self.barrier()  # all have read before any writes
        return x.copy_(total)

    def gather_vocab(self, logits_NV: Tensor, sizes: Sequence[int]) -> Tensor:
        self._show(logits_NV)
        gathered_NV = torch.cat(self._meeting.shown, -1)
        self.barrier()
        return gathered_NV

    def barrier(self) -> None:
        self._meeting.wait(self.rank)

    def close(self) -> None:
        self._meeting.leave(self.rank)

    def _show(self, x: Tensor) -> None:
        self._meeting.shown[self.rank] = x
        self.barrier()


class _Meeting:
    """A barrier that a rank can leave for good. (threading.Barrier.abort would also fail ranks that have
    met already but not yet woken.)"""

    def __init__(self, world_size: int, timeout_s: float) -> None:
        self.shown = [torch.empty(0)] * world_size
        self._world_size = world_size
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._arrived = 0
        self._round = 0
        self._gone: int | None = None

    def wait(self, rank: int) -> None:
        with self._changed:
            self._check(rank)
            current = self._round
            self._arrived += 1
            if self._arrived == self._world_size:
                self._arrived = 0
                self._round += 1
                self._changed.notify_all()
                return
            self._changed.wait_for(lambda: self._round != current or self._gone is not None, self._timeout_s)
            if self._round != current:
                return
            self._check(rank)
            self.leave(rank)
            raise ReplicaError(f"rank {rank}: waited {self._timeout_s:g} s for the other ranks")

    def leave(self, rank: int) -> None:
        with self._changed:
            if self._gone is None:
                self._gone = rank
            self._changed.notify_all()

    def _check(self, rank: int) -> None:
        if self._gone is not None:
            raise ReplicaError(f"rank {rank}: rank {self._gone} has left")
