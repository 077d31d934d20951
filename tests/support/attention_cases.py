"""What the attention kernels' tests share: cases, poisoned memory, attention in float64, and the tolerance.

A kernel's error may be at most twice that of the same computation in plain PyTorch at the same precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

HEADS = {
    "MHA": (0, 1, 2, 3),
    "MQA": (0, 5),
    "MQA, more heads than a tile has rows": (0, 71),
    "GQA": (0, 4, 8),
    "ragged": (0, 5, 7),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 21},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks_Q": 1.0},
    "ALiBi": {"alibi_slopes_Q": 0.3},
    "all of them": {"window": 21, "softcap": 3.0, "sinks_Q": 1.0, "alibi_slopes_Q": 0.3},
}
EMPTY = {  # contexts of sequences, by which of them have none
    "all": [0, 0, 0],
    "the only one": [0],
    "the first": [0, 0, 40, 17],
    "the last": [40, 17, 0, 0],
    "some in between": [40, 0, 0, 17, 0, 3],
    "all but one": [0, 0, 90, 0, 0],
}
Beside = tuple[int, int, int]  # values before a row's first head, behind each head, and behind the last one
BESIDE: dict[str, tuple[Beside, Beside]] = {  # queries, and their results
    "queries of a fused product": ((0, 0, 256), (64, 0, 32)),
    "heads wider than their values": ((32, 16, 48), (16, 16, 0)),
    "results at odd places": ((0, 0, 256), (3, 1, 1)),
    "rows off 16 values": ((0, 0, 8), (0, 0, 8)),
    "heads off 16 values": ((0, 8, 0), (8, 8, 0)),
    "all off 16 bytes": ((4, 0, 12), (4, 0, 12)),
    "queries at odd places": ((3, 1, 1), (0, 0, 0)),
}
NOTHING: tuple[Beside, Beside] = ((0, 0, 0), (0, 0, 0))


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Sequences' keys and values [L, G, D], laid out in pools that hold NaN in every slot but theirs."""

    keys: list[Tensor]
    values: list[Tensor]
    k_pool: Tensor
    v_pool: Tensor
    table: Tensor  # int32 [S, P]; behind a sequence's pages it points anywhere
    nobodys: int  # a page that holds nothing but NaN


class Results:
    """Where a launch is to leave its results: parts of wider rows, NaN everywhere."""

    def __init__(
        self, shape: Sequence[int], beside: Beside, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        num_rows, num_heads, _ = shape
        self.out, self._out = part_of_wider(shape, beside, dtype, device)
        lse, self._lse = part_of_wider((num_rows, 1, num_heads), beside, torch.float32, device)
        self.lse = lse[:, 0]

    def assert_alone(self) -> None:
        """Raise if anything beside them was written; they are NaN again."""
        for part, whole in ((self.out, self._out), (self.lse, self._lse)):
            part.fill_(torch.nan)
            assert bool(whole.isnan().all()), "something beside a result was written"


def part_of_wider(
    shape: Sequence[int], beside: Beside, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """([T, Q, D] with so much beside its heads, all of that), NaN everywhere."""
    num_rows, num_heads, head_dim = shape
    before, between, behind = beside
    width = num_heads * (head_dim + between)
    whole = torch.full((num_rows, before + width + behind), torch.nan, dtype=dtype, device=device)
    heads = whole[:, before : before + width].unflatten(1, (num_heads, head_dim + between))
    return heads[..., :head_dim], whole


def make_cache(
    lengths: Sequence[int],
    *,
    num_kv_heads: int,
    page_size: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str = "cpu",
) -> Cache:
    """Pages are dealt in a random order."""
    counts = [-(-length // page_size) for length in lengths]
    num_pages = sum(counts) + 3
    shape = (num_pages, num_kv_heads, page_size, head_dim)
    pools = [torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(2)]
    order = torch.randperm(num_pages)
    table = torch.randint(0, num_pages, (len(lengths), max(counts) + 2), dtype=torch.int32)
    kept: tuple[list[Tensor], list[Tensor]] = ([], [])
    for row, (length, pages) in enumerate(zip(lengths, order[: sum(counts)].split(counts), strict=True)):
        table[row, : len(pages)] = pages
        position = torch.arange(length)
        page, offset = pages[position // page_size].to(device), (position % page_size).to(device)
        for pool, keep in zip(pools, kept, strict=True):
            values = torch.randn(length, num_kv_heads, head_dim, device=device).to(dtype)
            pool[page, :, offset] = values
            keep.append(values)
    return Cache(
        keys=kept[0],
        values=kept[1],
        k_pool=pools[0],
        v_pool=pools[1],
        table=table.to(device),
        nobodys=int(order[-1]),
    )


def options_of(variant: str, num_heads: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """A variant's arguments; what a head has its own of is drawn for each."""
    options = dict(VARIANTS[variant])
    for name, kind in (("sinks_Q", dtype), ("alibi_slopes_Q", torch.float32)):
        if name in options:
            options[name] = (options[name] * torch.rand(num_heads)).to(device, kind)
    return options


def naive(
    q_TQD: Tensor,
    k_LGD: Tensor,
    v_LGD: Tensor,
    *,
    bounds: Sequence[int],
    scale: float,
    dtype: torch.dtype,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
    alibi_slopes_Q: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out_TQD, lse_TQ) of the last T of the L positions, step by step in `dtype`.

    Where there are fewer positions than queries, the first queries stand before them; one that sees nothing
    gives zeros.
    """
    group = torch.tensor([high - low for low, high in pairwise(bounds)], device=q_TQD.device)
    q, k, v = (x.to(dtype).transpose(0, 1) for x in (q_TQD, k_LGD, v_LGD))
    k, v = (x.repeat_interleave(group, 0) for x in (k, v))
    score = q @ k.mT * scale
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    key = torch.arange(len(k_LGD), device=q.device)
    query = torch.arange(len(k_LGD) - len(q_TQD), len(k_LGD), device=q.device)
    away = (query[:, None] - key).abs()
    if alibi_slopes_Q is not None:
        score = score - alibi_slopes_Q.to(dtype)[:, None, None] * away
    seen = away >= 0 if window is None else away < window
    if causal:
        seen = seen & (key <= query[:, None])
    score = score.masked_fill(~seen, -torch.inf)
    sinks = torch.full((len(q),), -torch.inf, device=q.device) if sinks_Q is None else sinks_Q
    whole = torch.cat((score, sinks.to(dtype)[:, None, None].expand(-1, len(q_TQD), 1)), 2)
    weights = whole.softmax(-1)[..., :-1].masked_fill(~seen, 0.0)
    return (weights @ v).transpose(0, 1), whole.logsumexp(-1).transpose(0, 1)


def assert_as_exact(found: Tensor, same_precision: Tensor, exact: Tensor) -> None:
    """Raise unless `found` is at most twice as far from `exact` as `same_precision`, all in all and at worst.

    Beside the ratio a few ulps of the dtype at the greatest value count: small cases may be exact by luck.
    """
    ulp = 4 * torch.finfo(found.dtype).eps * float(exact.abs().max()) if exact.numel() else 0.0
    ours, theirs = (found.double() - exact).abs(), (same_precision.double() - exact).abs()
    assert bool(found.isfinite().all()), "an output is not finite, or was not written"
    if ours.numel():
        assert float(ours.max()) <= 2 * float(theirs.max()) + ulp, (float(ours.max()), float(theirs.max()))
        assert float(ours.norm()) <= 2 * float(theirs.norm()) + ulp, (
            float(ours.norm()),
            float(theirs.norm()),
        )
