"""All-reduce through peers' memory. Ranks are processes: Triton's interpreter on memory that they share.

What this covers: the protocol, with real concurrency and ranks that drift apart, on a processor that keeps
the order of writes. What it does not: a GPU's memory order, many programs at once (the interpreter runs
them one by one), and links. `gpu/test_all_reduce_cuda.py` has those.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as c10d

pytest.importorskip("triton")

from headway_kernels import reference
from headway_kernels.all_reduce import all_reduce, all_reduce_norm, all_reduce_way, norm_way
from headway_kernels.peer_memory import Layout, PeerMemory, PeerMemoryError
from headway_kernels.tiles_all_reduce import in_one_shot
from peer_checks import check_norms, check_sums

SCRIPT = Path(__file__).with_name("peer_rank.py")
ROOM = 1 << 16


def alone(max_bytes: int = ROOM) -> PeerMemory:
    own = torch.zeros(Layout.of(1, max_bytes).num_bytes, dtype=torch.uint8)
    return PeerMemory(own, [own.data_ptr()], 0, max_bytes=max_bytes, max_polls=1000)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_get_the_same_sums_and_norms_call_after_call(world_size: int, tmp_path: Path) -> None:
    num_bytes = Layout.of(world_size, 256 << 10).num_bytes
    for rank in range(world_size):
        with (tmp_path / str(rank)).open("wb") as file:
            file.truncate(num_bytes)
    path = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    commands = [
        [sys.executable, str(SCRIPT), str(rank), str(world_size), str(tmp_path)] for rank in range(world_size)
    ]
    started = [
        subprocess.Popen(command, env=path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    digests = set()
    try:
        for process in started:
            output, errors = process.communicate(timeout=120)
            assert output.startswith("done"), errors
            digests.add(output)
        assert len(digests) == 1, "ranks differ"
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])  # bfloat16 is cut off, not rounded, here
def test_a_rank_alone_gets_what_it_has(dtype: torch.dtype) -> None:
    check_sums(alone(), dtype, lambda: None, sizes=(1, 7, 513))
    check_norms(alone(), dtype, lambda: None, shapes=((3, 33),))


def test_a_program_may_have_several_rows() -> None:
    peers, x = alone(), torch.randn(66, 8)
    found = all_reduce_norm(x, torch.ones(8), 1e-5, peers, way="one shot")
    torch.testing.assert_close(found, reference.rms_norm(x, torch.ones(8), 1e-5))


def test_places_are_apart_and_fit_the_memory() -> None:
    for world_size in range(1, 9):
        layout = Layout.of(world_size, 1000)
        starts = [0, layout.flags, layout.words, layout.shares, layout.results, layout.num_bytes]
        assert starts == sorted(set(starts))
        assert all(start % 128 == 0 for start in starts)
        assert layout.share_bytes * world_size * 128 >= 1000


def test_short_data_goes_in_one_shot_and_long_data_in_two() -> None:
    assert all(in_one_shot(256 << 10, world_size) for world_size in (2, 3))
    assert in_one_shot(64 << 10, 8)
    assert in_one_shot(8 << 20, 2)  # two ranks send no less in two
    assert not any(in_one_shot(8 << 20, world_size) for world_size in range(3, 9))


def test_the_reference_adds_in_float32_in_rank_order() -> None:
    parts = [torch.tensor([value], dtype=torch.float16) for value in (2048.0, 1.0, 1.0, -2048.0)]
    assert reference.all_reduce(parts).tolist() == [2.0]  # in float16 it would be 0


def test_what_does_not_fit_has_no_way() -> None:
    peers = alone(max_bytes=4096)
    assert all_reduce_way(torch.zeros(3, dtype=torch.int64), peers) is None
    assert norm_way(torch.zeros(3, 4, dtype=torch.int32), peers) is None
    assert norm_way(torch.zeros(1, 40000), peers) is None  # a row is more than a program has room for


def test_wrong_arguments_are_named() -> None:
    peers = alone(max_bytes=4096)
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"all_reduce: x must be .* dense .*, got torch.int64 \[2\]"):
        all_reduce(torch.zeros(2, dtype=torch.int64), peers)
    with pytest.raises(ValueError, match=r"all_reduce: x must be .*strides \[1, 4\]"):
        all_reduce(x.T, peers)
    with pytest.raises(ValueError, match=r"all_reduce: out must be torch.float32 \[3, 4\]"):
        all_reduce(x, peers, out=torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"all_reduce: x must be on cpu, .* got .* on meta"):
        all_reduce(x.to("meta"), peers)
    with pytest.raises(
        ValueError, match=r"all_reduce: x must fit the peers' memory of 4096 bytes in two shots"
    ):
        all_reduce(torch.zeros(1 << 20), peers, way="two shots")
    with pytest.raises(ValueError, match=r"all_reduce_norm: weight_H must be \[4\] on cpu, dense"):
        all_reduce_norm(x, torch.ones(3), 1e-5, peers)
    with pytest.raises(ValueError, match=r"all_reduce_norm: residual_TH must be torch.float32 \[3, 4\]"):
        all_reduce_norm(x, torch.ones(4), 1e-5, peers, x[:2])


def test_ranks_that_cannot_share_memory_all_hear_why() -> None:
    store = c10d.HashStore()

    def meet(rank: int) -> str:
        with pytest.raises(PeerMemoryError) as caught:
            PeerMemory.meet(store, rank, 2, device=torch.device("cpu"))
        return str(caught.value)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(meet, range(2))) == ["rank 0: cpu is no GPU"] * 2


def test_memory_that_is_not_as_laid_out_is_refused() -> None:
    own = torch.zeros(Layout.of(2, 1024).num_bytes, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"own must be uint8 \[\d+\], got torch.uint8 \[100\]"):
        PeerMemory(own[:100], [own.data_ptr()] * 2, 0, max_bytes=1024)
    with pytest.raises(ValueError, match=r"addresses\[1\] must be that of own"):
        PeerMemory(own, [own.data_ptr(), 0], 1, max_bytes=1024)
    with pytest.raises(ValueError, match="world_size must be 1 to 8, got 9"):
        Layout.of(9, 1024)
    with pytest.raises(ValueError, match="max_bytes must be positive, got 0"):
        Layout.of(2, 0)
