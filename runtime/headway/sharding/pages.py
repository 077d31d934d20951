"""How many pages of a rank's memory each group of layers gets: a sum that anyone can check.

Layers that see everything keep all pages of a sequence; layers with a window keep those that it touches. So
a group with a window can fill `useful` pages and no more, and the rest goes to the group that can use it.

Where memory is too small for that, no split suits every sequence: shorter than the window, it needs as many
pages in one group as in the other; longer, ever more in the group without a window. The split is then the
one that leaves both kinds the same part of what the best split for them alone would hold: with one window
half of it at least, where equal counts leave long sequences as little as 10 / 62 (Gemma 3 27B's layers
without a window). Before that, windows get what one sequence needs.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from headway.core.config import EngineConfig


@dataclass(frozen=True, kw_only=True)
class PageGroup:
    """The pages of layers that have the same window, on one rank.

    page_bytes: K and V of one page, in all these layers.
    useful: more could never be filled.
    least: what one sequence can fill, with the largest step that computes it.
    """

    window: int | None
    page_bytes: int
    useful: int
    least: int


def num_touched(num_positions: int, page_size: int, num_runs: int = 1) -> int:
    """Pages that `num_runs` runs of consecutive positions can touch, wherever they begin.

    `num_positions` in all, one a run at least.
    """
    return num_runs + (num_positions + num_runs * (page_size - 2)) // page_size


def page_groups(
    windows: Sequence[int | None], page_bytes: Sequence[int], config: EngineConfig, max_model_len: int
) -> tuple[PageGroup, ...]:
    """The groups of a decoder; `windows` and `page_bytes` have an entry each.

    When a step is planned, a row holds the window before its next token, and the step adds its tokens. A row
    that the step leaves out is granted room for a token, too, before another is admitted.
    """
    pages_a_row = -(-max_model_len // config.page_size)
    num_rows = min(config.max_num_rows, config.max_num_tokens)
    groups = []
    for window, size in zip(windows, page_bytes, strict=True):
        least, useful = pages_a_row, num_rows * pages_a_row
        if window is not None:
            least = min(least, num_touched(window - 1 + config.max_num_tokens, config.page_size))
            all_rows = num_rows * window + config.max_num_tokens
            useful = min(useful, num_touched(all_rows, config.page_size, num_rows))
        groups.append(PageGroup(window=window, page_bytes=size, useful=useful, least=least))
    return tuple(groups)


def share_out(num_bytes: int, groups: Sequence[PageGroup]) -> tuple[int, ...]:
    """Pages of each group, in its order, that `num_bytes` hold; none at all if not one of each fits.

    Groups with a window get `level` pages, the largest group more by a factor (1 up to `least`, what one
    sequence needs): then both kinds of sequences, which the factor weighs, fare alike.
    """
    largest = _largest(groups)
    whole = sum(group.page_bytes for group in groups) * groups[largest].useful
    filled = sum(group.page_bytes * group.useful for group in groups)
    least = max((group.least for index, group in enumerate(groups) if index != largest), default=0)

    def counts(level: int) -> list[int]:
        wanted = [level] * len(groups)
        if level > least:
            wanted[largest] = level * whole // filled
        return [min(group.useful, num) for group, num in zip(groups, wanted, strict=True)]

    levels = range(groups[largest].useful + 1)
    level = bisect_right(levels, num_bytes, key=lambda level: pool_bytes(counts(level), groups)) - 1
    if level < 1:
        return (0,) * len(groups)
    found = counts(level)
    rest = num_bytes - pool_bytes(found, groups)
    found[largest] = min(groups[largest].useful, found[largest] + rest // groups[largest].page_bytes)
    return tuple(found)


def as_asked(num_pages: int, groups: Sequence[PageGroup]) -> tuple[int, ...]:
    """`num_pages` in the largest group, and in the others as many as those let them fill."""
    largest = _largest(groups)
    return tuple(
        num_pages if index == largest else min(num_pages, group.useful) for index, group in enumerate(groups)
    )


def pool_bytes(num_pages: Sequence[int], groups: Sequence[PageGroup]) -> int:
    """What a pool takes that has `num_pages` of each group."""
    return sum(num * group.page_bytes for num, group in zip(num_pages, groups, strict=True))


def longest_sequence(
    context: int, *, num_pages: Sequence[int], windows: Sequence[int | None], page_size: int
) -> int:
    """Tokens that a sequence alone in the pool can have: the context, or less if the pool is smaller.

    A group bounds it unless its pages are as many as its window can touch.
    """
    bounds = [
        num * page_size
        for num, window in zip(num_pages, windows, strict=True)
        if window is None or num < num_touched(window, page_size)
    ]
    return min([context, *bounds])


def _largest(groups: Sequence[PageGroup]) -> int:
    """The group without a window; without one, that with the widest."""
    return max(range(len(groups)), key=lambda index: (groups[index].window is None, groups[index].useful))
