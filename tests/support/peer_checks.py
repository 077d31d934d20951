"""What every rank checks of `all_reduce` and `all_reduce_norm`: in the interpreter, and on GPUs.

Each rank makes the inputs of all ranks from a seed that they share, so it knows what must come out.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attention_cases import assert_as_exact
from headway_kernels import reference
from headway_kernels.all_reduce import all_reduce, all_reduce_norm, all_reduce_way, norm_way
from headway_kernels.peer_memory import PeerMemory

SIZES = (1, 7, 1025, 0, 2050)
SHAPES = ((1, 64), (3, 33), (0, 64))
WAYS = ("one shot", "two shots", None)
EPS = 1e-5


def drawn(seed: int, shape: Sequence[int], dtype: torch.dtype, peers: PeerMemory) -> list[Tensor]:
    """Every rank's tensor, the same wherever this is called."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(*shape, generator=generator).to(dtype) for _ in range(peers.world_size)]
    return [part.to(peers.own.device) for part in parts]


def check_sum(x: Tensor, parts: Sequence[Tensor], found: Tensor) -> None:
    """Sums in rank order leave no freedom: they equal the reference bit by bit, so ranks equal each other."""
    assert torch.equal(found, reference.all_reduce(parts)), f"{list(x.shape)} {x.dtype}"
    exact = reference.all_reduce([part.double() for part in parts])
    assert_as_exact(found, sum(parts[1:], parts[0]), exact)


def check_ones(peers: PeerMemory, dtype: torch.dtype) -> None:
    """Bits that could stand for what has not come are NaNs: they come, and stay NaNs."""
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    x = torch.full((1030,), -1, dtype=kind, device=peers.own.device).view(dtype)
    x[::3] = 0
    found = all_reduce(x, peers, way="one shot")
    assert torch.equal(found.isnan(), x.isnan())


def check_sums(
    peers: PeerMemory,
    dtype: torch.dtype,
    pause: Callable[[], None],
    sizes: Sequence[int] = SIZES,
    ways: Sequence[Any] = WAYS,
) -> None:
    """Consecutive calls of many sizes, both ways mixed; to a given tensor, and in place at an odd address."""
    for index, size in enumerate(sizes):
        for turn, way in enumerate(ways):
            pause()
            parts = drawn(31 * index + turn, (size,), dtype, peers)
            x = parts[peers.rank].clone()
            if way is None:
                x = torch.cat((x.new_zeros(1), x))[1:]
                assert all_reduce_way(x, peers) is not None
                found = all_reduce(x, peers, out=x)
                assert found is x
            else:
                out = torch.full_like(x, torch.nan)
                found = all_reduce(x, peers, out=out, way=way)
                assert torch.equal(x, parts[peers.rank]), "the input was changed"
            check_sum(x, parts, found)


def check_norms(
    peers: PeerMemory,
    dtype: torch.dtype,
    pause: Callable[[], None],
    shapes: Sequence[tuple[int, int]] = SHAPES,
    ways: Sequence[Any] = WAYS,
) -> list[Tensor]:
    """With a residual and without, both ways -> the normed rows, which must be equal on all ranks."""
    norms = []
    for index, shape in enumerate(shapes):
        for turn, way in enumerate(ways):
            pause()
            *parts, residual = (
                *drawn(97 * index + turn, shape, dtype, peers),
                drawn(-1 - index, shape, dtype, peers)[0],
            )
            weight = (1 + drawn(7, (shape[1],), torch.float32, peers)[0] / 8).to(
                torch.float32 if turn == 1 else dtype
            )
            old = None if (index + turn) % 3 == 0 else residual
            assert norm_way(parts[peers.rank], peers) is not None
            given: dict[str, Any] = {"normed_TH": torch.full_like(residual, torch.nan)}
            if old is not None and turn == 2:
                given["total_TH"] = old = residual.clone()
            normed, total = all_reduce_norm(parts[peers.rank], weight, EPS, peers, old, way=way, **given)
            old = None if old is None else residual
            expected, expected_total = reference.all_reduce_norm(parts, weight, EPS, old)
            assert torch.equal(total, expected_total), f"{shape} {dtype} {way}"
            exact, _ = reference.rms_norm(expected_total.double(), weight.double(), EPS)
            assert_as_exact(normed, expected, exact)
            norms.append(normed.cpu())
    return norms


def digest(tensors: Sequence[Tensor]) -> str:
    """Equal for tensors that are equal bit by bit."""
    whole = hashlib.sha256()
    for one in tensors:
        whole.update(one.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
