"""One rank of a process group, in a process of its own: `rank.py RANK WORLD_SIZE`.

Rank 0 prints the port of its store, the others read it; then each line read names a work, and its result is
printed as JSON.
"""

import json
import sys
import time
from typing import Any

import psutil
import torch

from headway.core.errors import ReplicaError
from headway.model.process_group import ProcessGroupCollectives, host_store, join_store

HOST = "127.0.0.1"


def sum_and_gather(collectives: ProcessGroupCollectives) -> dict[str, Any]:
    rank = collectives.rank
    sizes = [3, 2, 4][: collectives.world_size]
    with torch.inference_mode():
        total = collectives.all_reduce(torch.full((2, 3), 10.0**rank))
        gathered = collectives.gather_vocab(torch.full((2, sizes[rank]), float(rank)), sizes)
    connections = psutil.Process().net_connections("inet")
    listening = [entry.laddr.ip for entry in connections if entry.status == psutil.CONN_LISTEN]
    collectives.barrier()
    return {"total": total.tolist(), "gathered": gathered.tolist(), "listening": listening}


def wait_for_the_dead(collectives: ProcessGroupCollectives) -> tuple[str, float]:
    start = time.monotonic()
    try:
        collectives.all_reduce(torch.ones(4))
    except ReplicaError as error:
        return str(error), time.monotonic() - start
    return "no error", 0.0


def leave(collectives: ProcessGroupCollectives) -> str:
    collectives.close()
    return wait_for_the_dead(collectives)[0]


def main(rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    if rank == 0:
        store, port = host_store(HOST)
        print(port, flush=True)
    else:
        store = join_store(HOST, int(sys.stdin.readline()))
    device = torch.device("cpu")
    collectives = ProcessGroupCollectives(store, rank, world_size, host=HOST, device=device, timeout_s=30)
    works = {work.__name__: work for work in (sum_and_gather, wait_for_the_dead, leave)}
    for line in sys.stdin:
        print(json.dumps(works[line.strip()](collectives)), flush=True)
    collectives.close()


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:]))
