"""The KV pool of one rank, and how large it may be: a sum that anyone can check.

A pool is [pages, kv_heads, page_size, head_dim] for K and for V, a layer each. Layers with the same window
form a group: they share page tables, so a page of a group is a page in each of its layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.core.config import EngineConfig
from headway.core.errors import StartError
from headway.model.spec import DecoderSpec
from headway.sharding.pages import PageGroup, as_asked, pool_bytes, share_out

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PoolBudget:
    """Bytes on one rank's device.

    total: what the rank may count on: the GPU's memory, or its part of the host's that is free.
    fraction: of it that Headway may take.
    taken: held already by weights, libraries and other programs.
    activations: the most that a step needs beside them.
    groups: of layers, whose pages take the rest.
    """

    total: int
    fraction: float
    taken: int
    activations: int
    groups: tuple[PageGroup, ...]

    @property
    def pool_bytes(self) -> int:
        return int(self.total * self.fraction) - self.taken - self.activations

    def num_pages(self, config: EngineConfig) -> tuple[int, ...]:
        """Pages of each group: those that fit, or those that `config` asks for.

        Raises StartError if they do not fit. (A host would grant them, then kill who fills them.)
        """
        if config.num_pages is None:
            num_pages = share_out(self.pool_bytes, self.groups)
            if not all(num_pages):
                raise StartError(f"no memory for KV pages: {self}")
            return num_pages
        num_pages = as_asked(config.num_pages, self.groups)
        if pool_bytes(num_pages, self.groups) > self.pool_bytes:
            asked = f"{_each(num_pages)} KV pages (num_pages={config.num_pages})"
            raise StartError(f"no memory for {asked}: {self}")
        return num_pages

    def describe(self, config: EngineConfig) -> str:
        """The sum down to the pool, and what ends it there."""
        num_pages = self.num_pages(config)
        size = pool_bytes(num_pages, self.groups) / MIB
        if config.num_pages is not None:
            why = "are what num_pages asks for"
        elif num_pages == tuple(group.useful for group in self.groups):
            why = f"are all that {config.max_num_rows} rows can fill"
        else:
            why = "fit"
        return f"{self}: {_each(num_pages)} pages ({size:,.0f} MiB) {why}"

    def __str__(self) -> str:
        sizes = _each([group.page_bytes // 1024 for group in self.groups])
        return (
            f"{self.total / MIB:,.0f} MiB x {self.fraction:g} - {self.taken / MIB:,.0f} taken "
            f"- {self.activations / MIB:,.0f} activations = {self.pool_bytes / MIB:,.0f} MiB for pages "
            f"of {sizes} KiB"
        )


def _each(numbers: Sequence[int]) -> str:
    """A number a group, like "9,600 + 1,500"."""
    return " + ".join(f"{number:,}" for number in numbers)


class KvPool:
    """K and V pages of every layer. Unwritten pages hold whatever was there: no reader may count on zeros.

    num_pages: of each page group.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        *,
        num_pages: Sequence[int],
        num_kv_heads: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_kv_heads, page_size, spec.head_dim)
        counts = [num_pages[group] for group in spec.layer_groups]
        self.page_size = page_size
        self.k: list[Tensor] = [torch.empty((num, *shape), dtype=dtype, device=device) for num in counts]
        self.v: list[Tensor] = [torch.empty((num, *shape), dtype=dtype, device=device) for num in counts]

    @property
    def num_bytes(self) -> int:
        return sum(pool.nbytes for pool in (*self.k, *self.v))
