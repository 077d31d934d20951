"""All-reduce in microseconds, on two GPUs or more of this host: NCCL, torch's symmetric memory, and ours.

`measure` starts a process a rank (this file, run as a module), and figures are printed as they come. Every
contender is a CUDA graph of `CALLS` calls in a row, replayed between two events of
rank 0, on zeros, which stay what they are however often they are added up in place. A contender that raises,
on any rank, costs its own figures only; if a process hangs, what was measured until then is printed.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

from headway.core.errors import StartError
from headway.model.process_group import ProcessGroupCollectives, host_store, join_store

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

c10d: Any = torch.distributed  # the stubs of its C++ classes lack half of what is used here

SIZES = (8 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20)  # bytes
HIDDEN = 4096  # bfloat16 values of a row, where rows are normed
CALLS = 20
REPLAYS = 15
LIMIT_S = 100.0
MAX_POLLS = 20_000_000  # about 20 s: a rank may have to compile first
HOST = "127.0.0.1"
Call = Callable[[], object]
Make = Callable[["Rank", int], Call]  # from a rank and a number of bytes to the call that is timed


class Rank:
    """What contenders share in a rank's process."""

    def __init__(self, rank: int, world_size: int, store: "Store") -> None:
        self.rank = rank
        self.world_size = world_size
        self.store = store
        self.device = torch.device("cuda", rank)
        self.nccl = ProcessGroupCollectives(
            store, rank, world_size, host=HOST, device=self.device, timeout_s=LIMIT_S
        )
        self._peers: Any = None
        self._symmetric: Any = None
        self._num_meetings = 0

    def peers(self) -> Any:
        from headway_kernels.peer_memory import PeerMemory

        if self._peers is None:
            self._peers = PeerMemory.meet(
                self.store,
                self.rank,
                self.world_size,
                device=self.device,
                max_bytes=max(SIZES),
                max_polls=MAX_POLLS,
            )
        return self._peers

    def symmetric(self, num_bytes: int) -> tuple[torch.Tensor, str]:
        """Zeros in torch's symmetric memory, and the name of their group."""
        from torch._C._distributed_c10d import _register_process_group, _SymmetricMemory

        if self._symmetric is None:
            from torch._C._autograd import DeviceType

            if _SymmetricMemory.has_multicast_support(DeviceType.CUDA, self.rank):
                raise RuntimeError("torch would use NVLink multicast")
            store = c10d.PrefixStore("bench/symmetric", self.store)
            group: Any = c10d.ProcessGroup(store, self.rank, self.world_size)
            name: Any = "bench-symmetric"
            _register_process_group(name, group)
            whole = _SymmetricMemory.empty_strided_p2p(
                (max(SIZES) // 2,), (1,), torch.bfloat16, self.device, name
            )
            whole.zero_()
            torch.cuda.synchronize(self.device)
            self._symmetric = (whole, name, group, _SymmetricMemory.rendezvous(whole, name))
        whole, name = self._symmetric[:2]
        return whole[: num_bytes // 2], name

    def agree(self, problem: str) -> str:
        """The first problem that a rank has, or nothing; all ranks come here."""
        self._num_meetings += 1
        key = f"bench/{self._num_meetings}"
        self.store.set(f"{key}/{self.rank}", problem)
        found = [self.store.get(f"{key}/{rank}").decode() for rank in range(self.world_size)]
        return next((text for text in found if text), "")


def _nccl(rank: Rank, num_bytes: int) -> Call:
    x = _zeros(rank, num_bytes)
    return lambda: rank.nccl.all_reduce(x)


def _nccl_norm(rank: Rank, num_bytes: int) -> Call:
    from headway_kernels import reference

    x, residual, weight = _rows(rank, num_bytes)
    return lambda: reference.rms_norm(rank.nccl.all_reduce(x), weight, 1e-5, residual)


def _torch_one_shot(rank: Rank, num_bytes: int) -> Call:
    x, name = rank.symmetric(num_bytes)
    return lambda: torch.ops.symm_mem.one_shot_all_reduce(x, "sum", name)


def _torch_two_shot(rank: Rank, num_bytes: int) -> Call:
    x, name = rank.symmetric(num_bytes)
    return lambda: torch.ops.symm_mem.two_shot_all_reduce_(x, "sum", name)


def _ours(way: Any) -> Make:
    def make(rank: Rank, num_bytes: int) -> Call:
        from headway_kernels.all_reduce import all_reduce

        x, peers = _zeros(rank, num_bytes), rank.peers()
        return lambda: all_reduce(x, peers, out=x, way=way)

    return make


def _our_norm(way: Any) -> Make:
    def make(rank: Rank, num_bytes: int) -> Call:
        from headway_kernels.all_reduce import all_reduce_norm

        (x, residual, weight), peers = _rows(rank, num_bytes), rank.peers()
        return lambda: all_reduce_norm(x, weight, 1e-5, peers, residual, way=way)

    return make


CONTENDERS: Mapping[str, Make] = {
    "NCCL": _nccl,
    "NCCL, then PyTorch's norm": _nccl_norm,
    "torch, one shot": _torch_one_shot,
    "torch, two shots": _torch_two_shot,
    "ours, one shot": _ours("one shot"),
    "ours, two shots": _ours("two shots"),
    "ours": _ours(None),
    "ours, with norm": _our_norm(None),
    "ours, with norm, one shot": _our_norm("one shot"),
    "ours, with norm, two shots": _our_norm("two shots"),
}


def measure(world_size: int = 2) -> dict[str, dict[int, float]]:
    """Microseconds a call by contender and bytes; what could not be measured is left out.

    Prints figures and problems as they come. Raises StartError where there are too few GPUs.
    """
    if torch.cuda.device_count() < world_size:
        found = torch.cuda.device_count()
        raise StartError(f"bench all-reduce needs {world_size} GPUs, this host has {found}")
    figures: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(rank), str(world_size), folder],
                stdout=subprocess.PIPE if rank == 0 else None,
                text=True,
            )
            for rank in range(world_size)
        ]
        watchdog = threading.Timer(LIMIT_S, _kill, (ranks,))
        watchdog.start()
        try:
            assert ranks[0].stdout is not None
            for line in ranks[0].stdout:
                _say(line.rstrip())
                if line.startswith("{"):
                    figure = json.loads(line)
                    if "us" in figure:
                        figures.setdefault(figure["contender"], {})[figure["bytes"]] = figure["us"]
        finally:
            watchdog.cancel()
            _kill(ranks)
    return figures


def _kill(ranks: Sequence["subprocess.Popen[str]"]) -> None:
    for rank in ranks:
        rank.kill()
        rank.wait()


def _run(rank: Rank) -> None:
    """Measure every contender at every size; rank 0 prints."""
    for name, make in CONTENDERS.items():
        for num_bytes in SIZES:
            graph, problem = None, ""
            try:
                call = make(rank, num_bytes)
                call()
            except Exception as error:
                problem = f"rank {rank.rank}: {type(error).__name__}: {error}".partition("\n")[0]
            problem = rank.agree(problem)
            if not problem:
                try:
                    graph = _captured(call, rank.device)
                except Exception as error:
                    problem = f"rank {rank.rank}: {type(error).__name__}: {error}".partition("\n")[0]
                problem = rank.agree(problem)
            figure: dict[str, Any] = {"contender": name, "bytes": num_bytes}
            if graph is None or problem:
                figure["problem"] = problem
            else:
                figure["us"] = round(_timed(graph, rank), 2)
            if rank.rank == 0:
                _say(json.dumps(figure))


def _captured(call: Call, device: torch.device) -> torch.cuda.CUDAGraph:
    for _ in range(2):
        call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's watchdog is a thread, too
        for _ in range(CALLS):
            call()
    return graph


def _timed(graph: torch.cuda.CUDAGraph, rank: Rank) -> float:
    """Median microseconds a call. Ranks begin together: behind a barrier, and a replay that is not timed."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    times = []
    for _ in range(REPLAYS):
        rank.nccl.barrier()
        graph.replay()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize(rank.device)
        times.append(1e3 * float(begin.elapsed_time(end)) / CALLS)
    return median(times)


def _zeros(rank: Rank, num_bytes: int) -> torch.Tensor:
    return torch.zeros(num_bytes // 2, dtype=torch.bfloat16, device=rank.device)


def _rows(rank: Rank, num_bytes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = _zeros(rank, num_bytes).view(-1, HIDDEN)
    return x, torch.zeros_like(x), torch.ones(HIDDEN, dtype=x.dtype, device=x.device)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _main(rank: int, world_size: int, folder: Path) -> None:
    torch.cuda.set_device(rank)
    if rank == 0:
        store, port = host_store(HOST)
        (folder / "written").write_text(str(port))
        (folder / "written").rename(folder / "port")
    else:
        while not (folder / "port").exists():
            time.sleep(0.05)
        store = join_store(HOST, int((folder / "port").read_text()))
    ours = Rank(rank, world_size, store)
    _run(ours)
    ours.agree("")  # memory lives until all are done
    store.set(f"left/{rank}", "")
    if rank == 0:  # which hosts the store
        for one in range(world_size):
            store.get(f"left/{one}")
    os._exit(0)  # NCCL and graphs may wait for each other as they end; nothing here is left to save


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
