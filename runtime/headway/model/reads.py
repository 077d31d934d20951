"""From a decoder's tensors to the blocks of a checkpoint that fill them. Integers only.

A checkpoint may store a rank's tensor in parts or whole, its rows in another order, transposed, or an
expert at a time (`headway.model.stored`); a read says which block is taken and what becomes of it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from headway.model.layout import Axis, TensorLayout
from headway.model.stored import Order, Stored, Weights

Owned = Mapping[Axis, range]


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """One block of a checkpoint's tensor, and where it goes.

    ranges: what is read of `source`, a range for each dimension.
    transposed: the block's last two dimensions are then swapped.
    turns: its rows are then sorted: every `turns`-th from the first on, from the second on, ...
    place: where it then goes in `target`, a range for each dimension but the last of a matrix: it takes
        the full width.
    """

    source: str
    ranges: tuple[range, ...]
    target: str
    place: tuple[range, ...]
    transposed: bool = False
    turns: int = 1

    @property
    def num_values(self) -> int:
        return math.prod(map(len, self.ranges))


@dataclass(frozen=True, kw_only=True)
class TensorReads:
    """One tensor of the decoder, as `weights` says that the checkpoint stores it.

    sizes: the model's. num_groups: its KV heads.
    """

    layout: TensorLayout
    layer: int | None
    weights: Weights
    sizes: Mapping[Axis, int]
    num_groups: int

    @property
    def target(self) -> str:
        return self.layout.name if self.layer is None else f"layers.{self.layer}.{self.layout.name}"

    def shape(self, owned: Owned) -> tuple[int, ...]:
        """Of a rank's tensor."""
        rows = sum(len(owned[axis]) for _, axis in self.layout.parts)
        lead = (self.sizes[Axis.EXPERT],) if self.layout.per_expert else ()
        return (*lead, rows, *(len(columns) for columns in self._columns(owned)))

    def sources(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The checkpoint's tensors that hold it, with their full shapes."""
        whole = {axis: range(size) for axis, size in self.sizes.items()}
        for stored, parts in self._stored():
            num_rows = sum(self.sizes[axis] for _, axis in parts)
            for name, expert in self._names(stored):
                ranges = self._ranges(stored, expert, range(num_rows), whole)
                yield name, tuple(map(len, ranges))

    def reads(self, owned: Owned) -> Iterator[Read]:
        """What a rank that has `owned` reads to fill its tensor."""
        row = 0
        for stored, parts in self._stored():
            pieces = list(self._pieces(stored, parts, owned, row))
            for name, expert in self._names(stored):
                for rows, start in pieces:
                    yield Read(
                        source=name,
                        ranges=self._ranges(stored, expert, rows, owned),
                        target=self.target,
                        place=(*self._lead(expert), range(start, start + len(rows))),
                        transposed=stored.transposed and self.layout.columns is not None,
                        turns=len(parts) if stored.order is Order.TURNS else 1,
                    )
            row += sum(len(owned[axis]) for _, axis in parts)

    def _stored(self) -> Iterator[tuple[Stored, tuple[tuple[str, Axis], ...]]]:
        """What the checkpoint has: all parts in one tensor, or one each."""
        together = self._entry(self.layout.whole)
        if together is not None:
            yield together, self.layout.parts
            return
        for part in self.layout.parts:
            alone = self._entry(part[0])
            assert alone is not None, f"the family's table lacks {part[0]}"
            yield alone, (part,)

    def _entry(self, part: str) -> Stored | None:
        value = self.weights.get(part if self.layer is None else f"layers.{{i}}.{part}")
        return None if value is None else Stored.of(value)

    def _names(self, stored: Stored) -> Iterator[tuple[str, int | None]]:
        separate = self.layout.per_expert and "{e}" in stored.name
        for expert in range(self.sizes[Axis.EXPERT]) if separate else (None,):
            yield stored.tensor(self.layout.kind, layer=self.layer, expert=expert), expert

    def _pieces(
        self, stored: Stored, parts: tuple[tuple[str, Axis], ...], owned: Owned, row: int
    ) -> Iterator[tuple[range, int]]:
        """The source's rows that are read, and where they go from `row` of the target on."""
        if stored.order is Order.TURNS:
            turns, rows = len(parts), owned[parts[0][1]]
            yield range(turns * rows.start, turns * rows.stop), row
            return
        num_groups = self.num_groups if stored.order is Order.GROUPS else 1
        stride = sum(self.sizes[axis] for _, axis in parts) // num_groups
        offset = 0
        for _, axis in parts:
            width, rows = self.sizes[axis] // num_groups, owned[axis]
            for group in range(rows.start // width, -(-rows.stop // width)):
                low, high = max(rows.start, group * width), min(rows.stop, (group + 1) * width)
                start = group * stride + offset + low - group * width
                yield range(start, start + high - low), row
                row += high - low
            offset += width

    def _ranges(self, stored: Stored, expert: int | None, rows: range, owned: Owned) -> tuple[range, ...]:
        """Of a source's dimensions."""
        matrix = (rows, *self._columns(owned))
        lead = () if expert is not None else self._lead(None)
        return (*lead, *(reversed(matrix) if stored.transposed else matrix))

    def _columns(self, owned: Owned) -> tuple[range, ...]:
        return () if self.layout.columns is None else (owned[self.layout.columns],)

    def _lead(self, expert: int | None) -> tuple[range, ...]:
        """The target's dimension of experts, if it has one: one of them, or all."""
        if not self.layout.per_expert:
            return ()
        return (range(self.sizes[Axis.EXPERT]) if expert is None else range(expert, expert + 1),)
