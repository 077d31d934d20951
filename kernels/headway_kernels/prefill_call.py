"""What the two kernels of `flash_prefill` are launched with: one record, for pages and for dense rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from headway_kernels.launch import bounds_tensor, heads_of, within_int32
from headway_kernels.online_softmax import LOG2_E
from headway_kernels.variant import Variant


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillCall:
    """The tensors and numbers of one call, checked already.

    k, v: [pages, kv_heads, page_size, D], or dense rows [T, kv_heads, 1, D]: pages of one row that follow one
        another. Which of them it is says `context_lens`: None for dense rows, whose `table` says where
        sequences start, and end.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    table: Tensor
    query_starts: Tensor
    context_lens: Tensor | None
    group_bounds: Sequence[int]
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    slopes: Tensor | None
    out: Tensor
    lse: Tensor | None

    @property
    def num_seqs(self) -> int:
        return len(self.query_starts) - 1

    def num_tiles(self, rows: int) -> tuple[int, int]:
        """(KV heads, tiles of `rows` of each): a sequence may need one more than its share of all rows."""
        num_tiles = self.q.shape[0] * heads_of(self.group_bounds) // rows + self.num_seqs
        return len(self.group_bounds) - 1, num_tiles

    def arguments(self) -> tuple[Any, ...]:
        """What both kernels take, in their order."""
        plain = self.softcap is None and self.slopes is None
        return (
            self.q,
            self.out,
            self.lse,
            self.table,
            self.query_starts,
            self.context_lens,
            bounds_tensor(tuple(self.group_bounds), self.q.device),
            self.sinks,
            self.slopes,
            self.num_seqs,
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
            dense=self.context_lens is None,
            causal=self.causal,
            window=self.window is not None,
            softcap=self.softcap is not None,
            sinks=self.sinks is not None,
            alibi=self.slopes is not None,
            lse=self.lse is not None,
        )
