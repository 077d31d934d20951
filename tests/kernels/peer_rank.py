"""One rank of `all_reduce` in Triton's interpreter: `peer_rank.py RANK WORLD_SIZE FOLDER`.

The ranks' memory is a file each in FOLDER, mapped by all; every process has its own addresses, as on GPUs.
The last line of the output is "done" and a digest of what was normed, or there is an error.
"""

import os
import random
import sys
import time
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import torch

from headway_kernels.peer_memory import Layout, PeerMemory
from peer_checks import check_norms, check_ones, check_sums, digest

ROOM = 256 << 10


def mapped(file: Path, num_bytes: int) -> torch.Tensor:
    return torch.from_file(str(file), shared=True, size=num_bytes, dtype=torch.uint8)


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    num_bytes = Layout.of(world_size, ROOM).num_bytes
    files = [folder / str(one) for one in range(world_size)]
    memory = [mapped(file, num_bytes) for file in files]
    peers = PeerMemory(
        memory[rank], [one.data_ptr() for one in memory], rank, max_bytes=ROOM, max_polls=1_000_000
    )
    delays = random.Random(rank)

    def pause() -> None:
        """Ranks drift apart, each now and then the slow one."""
        time.sleep(delays.choice([0.0, 0.0, 0.003, 0.02]))

    check_sums(peers, torch.float16, pause)
    norms = check_norms(peers, torch.float16, pause)
    check_sums(peers, torch.float32, pause, sizes=(3, 1025))
    norms += check_norms(peers, torch.float32, pause, shapes=((3, 40),))
    check_ones(peers, torch.float16)
    norms += check_norms(peers, torch.float16, pause, shapes=((130, 8),), ways=("one shot",))  # two a program
    # Epochs go round after 2^32 calls; 0 is left out. Nobody may read or send while they jump.
    (folder / f"{rank} is idle").touch()
    while not all((folder / f"{one} is idle").exists() for one in range(world_size)):
        time.sleep(0.01)
    peers.own[: peers.layout.flags].view(torch.int32).fill_(-3)
    pause()
    check_sums(peers, torch.float16, pause, sizes=(100, 3000, 64))
    print("done", digest(norms))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
