"""What the kernels of `paged_decode`, and their merge, are launched with: one record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from headway_kernels.decode_plan import DecodePlan
from headway_kernels.launch import bounds_tensor, within_int32
from headway_kernels.online_softmax import LOG2_E
from headway_kernels.variant import Variant


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCall:
    """The tensors and numbers of one call, checked already."""

    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    table: Tensor
    context_lens: Tensor
    plan: DecodePlan
    group_bounds: Sequence[int]
    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    slopes: Tensor | None
    out: Tensor
    lse: Tensor | None

    @property
    def bounds(self) -> Tensor:
        return bounds_tensor(tuple(self.group_bounds), self.q.device)

    def arguments(self) -> tuple[Any, ...]:
        """What both kernels of attention take, in their order."""
        plain = self.softcap is None and self.slopes is None
        return (
            self.q,
            self.out,
            self.lse,
            self.plan.parts,
            self.plan.lse,
            self.table,
            self.context_lens,
            self.plan.tile_starts,
            self.plan.first_row,
            self.bounds,
            self.sinks,
            self.slopes,
            len(self.context_lens),
            self.plan.num_kv_heads,
            self.plan.blocks,
            self.plan.num_queries,
            self.scale * LOG2_E.value if plain else self.scale,
            within_int32(self.window) or 0,
            self.softcap or 0.0,
            *self.q.stride()[:2],
            *self.out.stride()[:2],
            self.table.stride(0),
            0 if self.lse is None else self.lse.stride(0),
        )

    @property
    def variant(self) -> Variant:
        return Variant(
            shares=True,
            single=self.plan.num_queries == 1,
            window=self.window is not None,
            softcap=self.softcap is not None,
            sinks=self.sinks is not None,
            alibi=self.slopes is not None,
            lse=self.lse is not None,
        )
