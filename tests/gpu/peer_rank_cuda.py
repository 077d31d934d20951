"""One rank of `all_reduce` on a GPU of its own: `peer_rank_cuda.py RANK WORLD_SIZE FOLDER`.

Rank 0 leaves the port of its store in FOLDER. A line of the output is "done" and a digest of what was
normed, or "skip" and a reason, or there is an error.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from headway.model.process_group import host_store, join_store
from headway_kernels import reference
from headway_kernels.all_reduce import all_reduce, all_reduce_norm
from headway_kernels.peer_memory import PeerMemory, PeerMemoryError
from peer_checks import EPS, check_norms, check_ones, check_sum, check_sums, digest, drawn

HOST = "127.0.0.1"
ROOM = 8 << 20
POLLS = 20_000_000  # about 20 s: a rank may have to compile first
SMALL = (1, 7, 1025, 0, 2, 4096, 4097, 32768, 65544, 131072, 131073, 262144)
LARGE = (524288, 1000003, 4194304, 300001)
ROWS = ((1, 4096), (3, 5120), (64, 4096), (1, 8192), (2, 4544), (0, 64), (100, 2048), (5, 33))
MANY_ROWS = ((256, 4096), (1001, 1024), (7, 8192))
NUM_CALLS = 400
NUM_REPLAYS = 100


def meet(rank: int, world_size: int, folder: Path) -> PeerMemory:
    file = folder / "port"
    if rank == 0:
        store, port = host_store(HOST)
        (folder / "written").write_text(str(port))
        (folder / "written").rename(file)
    else:
        while not file.exists():
            time.sleep(0.05)
        store = join_store(HOST, int(file.read_text()))
    device = torch.device("cuda", rank)
    peers = PeerMemory.meet(store, rank, world_size, device=device, max_bytes=ROOM, max_polls=POLLS)
    peers.store = store  # type: ignore[attr-defined]  # for the end
    return peers


def together(peers: PeerMemory, what: str) -> None:
    store = peers.store  # type: ignore[attr-defined]
    store.set(f"{what}/{peers.rank}", "")
    for one in range(peers.world_size):
        store.get(f"{what}/{one}")


def leave(peers: PeerMemory) -> None:
    """End this process; rank 0, which hosts the store, goes last."""
    store = peers.store  # type: ignore[attr-defined]
    store.set(f"left/{peers.rank}", "")
    if peers.rank == 0:
        for one in range(peers.world_size):
            store.get(f"left/{one}")
    os._exit(0)


def drift(delays: random.Random) -> None:
    """Keep this rank's GPU busy for up to half a millisecond, now and then."""
    if delays.random() < 0.3:
        torch.cuda._sleep(delays.randrange(1_000_000))


def check_many_calls(peers: PeerMemory) -> None:
    """Hundreds of calls in a row, nothing between them but delays, and nothing looked at before the end."""
    order, delays = random.Random(0), random.Random(peers.rank)
    sizes = (1, 8, 1000, 4096, 4099, 30000, 131072)
    pool = {size: drawn(size, (size,), torch.bfloat16, peers) for size in sizes}
    torch.cuda.synchronize()
    results = []
    for _ in range(NUM_CALLS):
        size, way = order.choice(sizes), order.choice(("one shot", "two shots"))
        results.append((size, all_reduce(pool[size][peers.rank], peers, way=way)))
        drift(delays)
    expected = {size: reference.all_reduce(parts) for size, parts in pool.items()}
    for index, (size, found) in enumerate(results):
        assert torch.equal(found, expected[size]), f"call {index}, {size} values"


def check_graph(peers: PeerMemory) -> list[torch.Tensor]:
    """A graph of an odd number of calls, replayed with other inputs, on ranks that drift apart."""
    shape = (16, 4096)
    parts = [drawn(seed, shape, torch.bfloat16, peers) for seed in range(4)]
    residual = drawn(9, shape, torch.bfloat16, peers)[0]
    weight = drawn(10, shape[1:], torch.bfloat16, peers)[0]
    x = parts[0][peers.rank].clone()
    outs: list[Any] = []

    def step() -> None:
        outs[:] = [
            all_reduce(x, peers, way="one shot"),
            all_reduce(x[:3], peers, way="two shots"),
            all_reduce(x, peers, way="two shots"),
            *all_reduce_norm(x, weight, EPS, peers, residual, way="one shot"),
            *all_reduce_norm(x, weight, EPS, peers, residual, way="two shots"),
        ]

    replay_step = captured(step)
    delays, norms = random.Random(peers.rank), []
    for replay in range(NUM_REPLAYS):
        ranks = parts[replay % len(parts)]
        x.copy_(ranks[peers.rank])
        for out in outs:
            out.fill_(torch.nan)
        drift(delays)
        replay_step()
        total = reference.all_reduce(ranks)
        for found, expected in zip(outs[:3], (total, total[:3], total), strict=True):
            assert torch.equal(found, expected), f"replay {replay}"
        for normed, found in (outs[3:5], outs[5:7]):
            assert torch.equal(found, total + residual), f"replay {replay}"
            check_norm(normed, total + residual, weight)
        if replay < len(parts):
            norms += [outs[3].cpu(), outs[5].cpu()]
    return norms


def captured(step: Callable[[], None]) -> Callable[[], None]:
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def check_norm(normed: torch.Tensor, total: torch.Tensor, weight: torch.Tensor) -> None:
    expected, _ = reference.rms_norm(total, weight, EPS)
    torch.testing.assert_close(normed, expected, atol=0.0, rtol=2.0**-7)


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.cuda.set_device(rank)
    try:
        peers = meet(rank, world_size, folder)
    except PeerMemoryError as error:
        print("skip", error, flush=True)
        os._exit(0)
    delays = random.Random(rank)

    def pause() -> None:
        drift(delays)

    check_sums(peers, torch.bfloat16, pause, SMALL)
    check_sums(peers, torch.bfloat16, pause, LARGE, ("two shots", None))
    norms = check_norms(peers, torch.bfloat16, pause, ROWS)
    norms += check_norms(peers, torch.bfloat16, pause, MANY_ROWS, ("two shots", None))
    check_sums(peers, torch.float16, pause, (7, 4096, 131073))
    norms += check_norms(peers, torch.float16, pause, ((3, 4096), (5, 33)))
    check_sums(peers, torch.float32, pause, (1, 4097, 131072))
    norms += check_norms(peers, torch.float32, pause, ((3, 4096),))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        check_ones(peers, dtype)
    check_many_calls(peers)
    norms += check_graph(peers)
    x = drawn(0, (100,), torch.bfloat16, peers)
    torch.cuda.synchronize()
    together(peers, "idle")  # nobody reads or sends while epochs jump
    peers.own[: peers.layout.flags].view(torch.int32).fill_(-3)  # they go round after 2^32 calls
    torch.cuda.synchronize()
    for _ in range(6):
        check_sum(x[rank], x, all_reduce(x[rank], peers))
    torch.cuda.synchronize()
    print("done", digest(norms), flush=True)
    together(peers, "end")  # memory lives until all are done
    leave(peers)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
