"""The KV pool of one rank, and how large it may be: a sum that anyone can check.

A pool is [pages, kv_heads, page_size, head_dim] for K and for V, a layer each. Layers with the same window
form a group: they share page tables, so a page of a group is a page in each of its layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from headway.core.errors import StartError
from headway.model.spec import DecoderSpec

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PoolBudget:
    """Bytes on one rank's device.

    total: what the rank may count on: the GPU's memory, or its part of the host's that is free.
    fraction: of it that Headway may take.
    taken: held already by weights, libraries and other programs.
    activations: the most that a step needs beside them.
    page_bytes: one page in every group. useful_pages: more could never be filled.
    """

    total: int
    fraction: float
    taken: int
    activations: int
    page_bytes: int
    useful_pages: int

    @property
    def pool_bytes(self) -> int:
        return int(self.total * self.fraction) - self.taken - self.activations

    @property
    def num_pages(self) -> int:
        """Pages in each group. Raises StartError if not even one fits."""
        num_pages = min(self.pool_bytes // self.page_bytes, self.useful_pages)
        if num_pages < 1:
            raise StartError(f"no memory for KV pages: {self}")
        return num_pages

    def check(self, num_pages: int) -> None:
        """Raise StartError unless `num_pages` fit. (A host would grant them, then kill who fills them.)"""
        if num_pages * self.page_bytes > self.pool_bytes:
            raise StartError(f"no memory for num_pages={num_pages} KV pages: {self}")

    def __str__(self) -> str:
        return (
            f"{self.total / MIB:,.0f} MiB x {self.fraction:g} - {self.taken / MIB:,.0f} taken "
            f"- {self.activations / MIB:,.0f} activations = {self.pool_bytes / MIB:,.0f} MiB for pages "
            f"of {self.page_bytes / 1024:,.0f} KiB"
        )


def page_bytes(spec: DecoderSpec, *, num_kv_heads: int, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page in every group: K and V over all layers."""
    return 2 * spec.num_layers * num_kv_heads * page_size * spec.head_dim * dtype.itemsize


class KvPool:
    """K and V pages of every layer. Unwritten pages hold whatever was there: no reader may count on zeros."""

    def __init__(
        self,
        spec: DecoderSpec,
        *,
        num_pages: int,
        num_kv_heads: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_pages, num_kv_heads, page_size, spec.head_dim)
        self.page_size = page_size
        self.num_pages = num_pages
        self.k: list[Tensor] = [torch.empty(shape, dtype=dtype, device=device) for _ in spec.layers]
        self.v: list[Tensor] = [torch.empty(shape, dtype=dtype, device=device) for _ in spec.layers]

    @property
    def num_bytes(self) -> int:
        return sum(pool.nbytes for pool in (*self.k, *self.v))
