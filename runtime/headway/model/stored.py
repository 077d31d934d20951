"""How a checkpoint stores a part of the decoder: what a family's table of weight names is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Order(StrEnum):
    """How the rows of parts that share a tensor (q, k, v; gate, up) follow each other."""

    BLOCKS = "blocks"  # all of the first part, all of the second, ...
    GROUPS = "groups"  # for each KV head: its queries, its key, its value
    TURNS = "turns"  # a row of each part in turn


@dataclass(frozen=True)
class Stored:
    """One tensor, or one an expert, and its bias.

    name: with `{i}` for the layer, and `{e}` for the expert where each has a tensor of its own; without
        `{e}`, experts are stacked along a first dimension.
    order: of the parts within, where the table's key stands for more than one.
    transposed: a matrix is stored as [in, out].
    weight, bias: what follows the name.
    """

    name: str
    order: Order = Order.BLOCKS
    transposed: bool = False
    weight: str = ".weight"
    bias: str = ".bias"

    @classmethod
    def of(cls, value: "str | Stored") -> "Stored":
        """A name alone means a tensor for each part, stored as [out, in]."""
        return cls(value) if isinstance(value, str) else value

    def tensor(self, kind: str, *, layer: int | None, expert: int | None) -> str:
        """The full name of the "weight" or the "bias"."""
        suffix = self.weight if kind == "weight" else self.bias
        return self.name.format(i=layer, e=expert) + suffix


Weights = Mapping[str, str | Stored]
