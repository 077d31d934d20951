"""What only values can tell, checked on the host before a launch: wrong page numbers, lengths and indices.

A kernel follows its page table wherever that points: a wrong entry gives another request's values or a fault
some launches later. Launchers call these where they are told to (`check_values=True`), which waits for the
device: for looking for a fault, not for serving, and not within a captured graph.

Every function raises ValueError that names operation, argument, place, limit and value.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from headway_kernels.decode_plan import DecodePlan


def check_starts(op: str, name: str, starts: Tensor, counts: Sequence[int], num_tokens: int) -> None:
    """`starts` are the sums of the counts before each sequence, and end where the tensor does."""
    for row, count in enumerate(counts):
        if count < 0:
            raise ValueError(f"{op}: lengths[{row}] must not be negative, got {count} for {name}")
    _equal(op, name, starts, list(accumulate(counts, initial=0)))
    if sum(counts) != num_tokens:
        raise ValueError(
            f"{op}: {name}[{len(counts)}] must be {num_tokens}, the tokens given, got {sum(counts)}"
        )


def check_lengths(op: str, context_lens: Tensor, lengths: Sequence[int], *, at_least: Sequence[int]) -> None:
    """The device's lengths are the host's, and no context is shorter than the tokens that it ends with."""
    _equal(op, "context_lens", context_lens, lengths)
    for row, (length, least) in enumerate(zip(lengths, at_least, strict=True)):
        if length < least:
            raise ValueError(
                f"{op}: context_lens[{row}] must be at least {least}, its new tokens, got {length}"
            )


def check_pages(
    op: str,
    page_table: Tensor,
    context_lens: Sequence[int],
    num_queries: Sequence[int],
    *,
    pool: Tensor,
    window: int | None,
    max_context_len: int | None = None,
) -> None:
    """The table holds every context, and the pages that the newest tokens see are in the pool."""
    num_pages, _, page_size, _ = pool.shape
    capacity = page_table.shape[1] * page_size
    most = capacity if max_context_len is None else min(capacity, max_context_len)
    _within(op, "context_lens", torch.tensor(context_lens), most)
    table_SP, length_S1 = page_table.cpu(), torch.tensor(context_lens)[:, None]
    first_S1 = torch.zeros_like(length_S1)
    if window is not None:
        first_S1 = (length_S1 - torch.tensor(num_queries)[:, None] - window + 1).clamp(min=0)
    position_P = torch.arange(page_table.shape[1]) * page_size
    used_SP = (position_P + page_size > first_S1) & (position_P < length_S1)
    _within(op, "page_table", table_SP, num_pages - 1, used_SP)


def check_plan(op: str, plan: DecodePlan, context_lens: Sequence[int]) -> None:
    """The plan was made for these lengths."""
    tiles = []
    for length in context_lens:
        first = 0 if plan.window is None else max(length - plan.num_queries + 1 - plan.window, 0)
        tiles.append(-(-max(length, 1) // plan.tile.positions) - first // plan.tile.positions)
    _equal(op, "plan.tile_starts", plan.tile_starts, list(accumulate(tiles, initial=0)))


def check_indices(op: str, name: str, indices: Tensor, limit: int) -> None:
    """All of them are from 0 to limit - 1; for what is read, which may be read twice."""
    _within(op, name, indices.cpu(), limit - 1)


def check_slots(op: str, name: str, slots: Tensor, num_slots: int) -> None:
    """Slots to be written are there, and no two are the same: their writers would race."""
    slots_T = slots.cpu()
    _within(op, name, slots_T, num_slots - 1)
    sorted_T, order_T = slots_T.sort(stable=True)
    twice = (sorted_T[1:] == sorted_T[:-1]).nonzero()
    if len(twice):
        one, other = order_T[twice[0, 0]], order_T[twice[0, 0] + 1]
        raise ValueError(f"{op}: {name}[{other}] must differ from {name}[{one}], got {slots_T[one]} for both")


def _equal(op: str, name: str, found: Tensor, expected: Sequence[int]) -> None:
    for place, (one, other) in enumerate(zip(found.tolist(), expected, strict=True)):
        if one != other:
            raise ValueError(f"{op}: {name}[{place}] must be {other} by the lengths given, got {one}")


def _within(op: str, name: str, values: Tensor, most: int, used: Tensor | None = None) -> None:
    wrong = (values < 0) | (values > most)
    places = (wrong if used is None else wrong & used).nonzero()
    if len(places):
        place = places[0].tolist()
        raise ValueError(f"{op}: {name}{place} must be from 0 to {most}, got {values[tuple(place)]}")
