"""`all_reduce` and `all_reduce_norm`, both ways: compiled for two ranks, and for eight.

On a GPU a rank is alone: it has nobody to wait for.
"""

from functools import partial
from typing import Any

import torch

from headway_kernels.all_reduce import all_reduce, all_reduce_norm
from headway_kernels.peer_memory import Layout, PeerMemory
from launches import Launch

ROOM = 1 << 20


def _peers(device: str, world_size: int) -> PeerMemory:
    world_size = world_size if device == "cpu" else 1
    own = torch.zeros(Layout.of(world_size, ROOM).num_bytes, dtype=torch.uint8, device=device)
    return PeerMemory(own, [own.data_ptr()] * world_size, 0, max_bytes=ROOM)


def _sum(device: str, *, size: int, world_size: int, way: Any, dtype: torch.dtype = torch.bfloat16) -> Launch:
    x = torch.randn(size, device=device).to(dtype)
    peers = _peers(device, world_size)
    return lambda: all_reduce(x, peers, way=way)


def _norm(device: str, *, rows: int, size: int, world_size: int, way: Any) -> Launch:
    x, residual = torch.randn(2, rows, size, device=device).bfloat16()
    weight = torch.randn(size, device=device).bfloat16()
    peers = _peers(device, world_size)
    return lambda: all_reduce_norm(x, weight, 1e-5, peers, residual, way=way)


LAUNCHES = {
    "one shot, 8 KB, 2 ranks": partial(_sum, size=4096, world_size=2, way="one shot"),
    "one shot, 256 KB, 8 ranks": partial(_sum, size=131072, world_size=8, way="one shot"),
    "one shot, odd size, 2 ranks": partial(_sum, size=4097, world_size=2, way="one shot"),
    "one shot, float32, 2 ranks": partial(_sum, size=4096, world_size=2, way="one shot", dtype=torch.float32),
    "two shots, 1 MB, 2 ranks": partial(_sum, size=524288, world_size=2, way="two shots"),
    "two shots, 1 MB, 8 ranks": partial(_sum, size=524288, world_size=8, way="two shots"),
    "norm, one shot, 2 ranks": partial(_norm, rows=4, size=4096, world_size=2, way="one shot"),
    "norm, one shot, 8 ranks": partial(_norm, rows=1, size=8192, world_size=8, way="one shot"),
    "norm, two shots, 2 ranks": partial(_norm, rows=128, size=4096, world_size=2, way="two shots"),
}
