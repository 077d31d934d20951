"""The numbers of tokens that between them take every kernel of the op `moe`: a warm-up launches these.

Which kernels it takes follows from the number of pairs, each by a rule of its own (`tiles_matmul`,
`expert_blocks`), and the rules change at different numbers: powers of two would miss some combinations.
"""

from collections.abc import Hashable, Iterator

from torch import Tensor

from headway_kernels.expert_blocks import chunk_of, most_blocks
from headway_kernels.grouped_matmul import unit_and_tile
from headway_kernels.moe import parts_dtype
from headway_kernels.tiles_matmul import grouped_rows


def moe_sizes(most: int, *, top_k: int, gate_up_E2IH: Tensor, down_EHI: Tensor) -> tuple[int, ...]:
    """As `reference.moe_sizes`: every number up to `most` that takes a kernel which no lower one takes."""
    sizes: list[int] = []
    known: set[Hashable] = set()
    for size in range(1, most + 1):
        kernels = set(_kernels(size * top_k, gate_up_E2IH, down_EHI))
        if not kernels <= known:
            sizes.append(size)
            known |= kernels
    return tuple(sizes)


def _kernels(num_pairs: int, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Iterator[Hashable]:
    num_experts, hidden, _ = down_EHI.shape
    rows = grouped_rows(num_pairs, num_experts, dtype=down_EHI.dtype)
    num_blocks = most_blocks(num_pairs, num_experts, rows)
    dtype = parts_dtype(num_pairs, hidden, down_EHI.dtype)
    yield "blocks", rows, chunk_of(num_pairs), num_blocks == num_pairs
    for name, weight in (("gate_up", gate_up_E2IH), ("down", down_EHI)):
        tile = unit_and_tile(weight, a_row=weight.shape[2], num_blocks=num_blocks, rows=rows)
        yield name, tile, dtype if name == "down" else None
    yield "sum", dtype
