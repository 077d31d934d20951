"""Collectives of one rank, and of ranks that are threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from headway.core.errors import ReplicaError
from headway.model.collectives import Collectives, SoloCollectives, ThreadCollectives


def on_every_rank(group: list[ThreadCollectives], work: Callable[[Collectives], Tensor]) -> list[Tensor]:
    with ThreadPoolExecutor(len(group)) as threads:
        return list(threads.map(work, group))


def test_a_single_rank_keeps_what_it_has() -> None:
    solo: Collectives = SoloCollectives()
    x = torch.randn(3, 4)
    assert solo.all_reduce(x) is x
    assert solo.gather_vocab(x, [4]) is x
    solo.barrier()
    solo.close()


def test_the_sum_is_in_place_in_rank_order_and_equal_on_all_ranks() -> None:
    parts = [torch.randn(5, 7) * 10**rank for rank in range(4)]
    expected = ((parts[0] + parts[1]) + parts[2]) + parts[3]

    def work(collectives: Collectives) -> Tensor:
        for _ in range(20):
            x = parts[collectives.rank].clone()
            assert collectives.all_reduce(x) is x
        return x

    assert all(torch.equal(x, expected) for x in on_every_rank(ThreadCollectives.group(4), work))


def test_uneven_vocabulary_parts_are_laid_side_by_side() -> None:
    whole = torch.randn(2, 9)
    parts = whole.split([4, 2, 3], -1)

    def work(collectives: Collectives) -> Tensor:
        return collectives.gather_vocab(parts[collectives.rank], [4, 2, 3])

    assert all(torch.equal(x, whole) for x in on_every_rank(ThreadCollectives.group(3), work))


def test_a_rank_that_leaves_fails_the_others_at_once() -> None:
    def work(collectives: Collectives) -> Tensor:
        if collectives.rank == 1:
            collectives.close()
            return torch.zeros(1)
        with pytest.raises(ReplicaError, match=f"rank {collectives.rank}: rank 1 has left"):
            collectives.barrier()
        with pytest.raises(ReplicaError):
            collectives.all_reduce(torch.ones(1))
        return torch.ones(1)

    assert len(on_every_rank(ThreadCollectives.group(3, timeout_s=60), work)) == 3


def test_a_rank_may_leave_as_soon_as_it_is_through_the_last_meeting() -> None:
    def work(collectives: Collectives) -> Tensor:
        collectives.barrier()
        collectives.close()
        return torch.ones(1)

    for _ in range(50):
        on_every_rank(ThreadCollectives.group(4), work)


def test_a_rank_that_stays_away_is_waited_for_no_longer_than_told() -> None:
    group = ThreadCollectives.group(2, timeout_s=0.01)
    with pytest.raises(ReplicaError, match=r"rank 0: waited 0\.01 s"):
        group[0].barrier()
    with pytest.raises(ReplicaError, match="rank 1: rank 0 has left"):
        group[1].barrier()
