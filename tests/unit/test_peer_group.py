"""Which all-reduces go through peers' memory; the ranks' own tests are beside the kernels."""

import pytest
import torch
import torch.distributed as c10d

pytest.importorskip("triton")

from headway.model import peer_group
from headway.model.peer_group import PeerCollectives
from headway_kernels import all_reduce, peer_memory

ROOM = 4096


def alone() -> PeerCollectives:
    return PeerCollectives(c10d.HashStore(), 0, 1, host="127.0.0.1", device=torch.device("cpu"), timeout_s=10)


def test_sums_that_fit_are_made_in_place_in_peers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    collectives = alone()
    own = torch.zeros(peer_memory.Layout.of(1, ROOM).num_bytes, dtype=torch.uint8)
    peers = peer_memory.PeerMemory(own, [own.data_ptr()], 0, max_bytes=ROOM)
    monkeypatch.setattr(collectives, "_peers", peers)
    calls = []
    monkeypatch.setattr(all_reduce, "all_reduce", lambda x, peers, out: calls.append(x) or out)
    fits, whole, large = torch.ones(8), torch.ones(8, dtype=torch.int64), torch.ones(1 << 20)
    for x in (fits, whole, large):
        assert collectives.all_reduce(x) is x
    assert [len(x) for x in calls] == [8]
    collectives.close()


def test_ranks_that_cannot_share_memory_are_told_once_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise peer_memory.PeerMemoryError("the ranks are on several hosts")

    monkeypatch.setattr(peer_memory.PeerMemory, "meet", refuse)
    device = torch.device("cuda", 0)
    for rank in range(2):
        assert peer_group._meet(c10d.HashStore(), rank, 2, device, 1.0) is None
    assert caplog.messages == ["all-reduce goes through NCCL: the ranks are on several hosts"]


def test_on_cpus_there_is_no_peers_memory() -> None:
    collectives = alone()
    assert collectives._peers is None
    assert collectives.all_reduce(torch.ones(2)).tolist() == [1.0, 1.0]
    collectives.close()
