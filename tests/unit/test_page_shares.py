"""How a rank's memory is shared out to groups of layers: chosen cases, and what holds of all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.config import EngineConfig
from headway.sharding.pages import (
    PageGroup,
    as_asked,
    longest_sequence,
    num_touched,
    page_groups,
    pool_bytes,
    share_out,
)


def make_groups(
    *windows: int | None, sizes: tuple[int, ...] = (1, 1), max_model_len: int = 1024, **settings: Any
) -> tuple[PageGroup, ...]:
    config = EngineConfig(**({"max_num_rows": 4, "max_num_tokens": 64} | settings))
    return page_groups(windows, sizes[: len(windows)], config, max_model_len)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    starts=st.lists(st.integers(0, 8), min_size=4, max_size=4),
    page_size=st.integers(1, 8),
)
def test_no_runs_of_positions_touch_more_pages_than_counted(
    lengths: list[int], starts: list[int], page_size: int
) -> None:
    touched = sum(
        len({position // page_size for position in range(start, start + length)})
        for start, length in zip(starts, lengths, strict=False)
    )
    assert touched <= num_touched(sum(lengths), page_size, len(lengths))


@pytest.mark.parametrize(("length", "page_size"), [(1, 1), (1, 4), (2, 4), (5, 4), (6, 4), (4096, 16)])
def test_one_run_can_touch_as_many_pages_as_counted(length: int, page_size: int) -> None:
    touched = [(start + length - 1) // page_size - start // page_size + 1 for start in range(page_size)]
    assert max(touched) == num_touched(length, page_size)


def test_a_window_can_fill_the_pages_it_touches_and_those_of_a_step() -> None:
    full, windowed = make_groups(None, 128)
    assert (full.useful, full.least) == (4 * 64, 64)
    assert windowed.useful == num_touched(4 * 127 + 64, 16, 4) == 4 + (4 * 127 + 64 + 4 * 14) // 16
    assert windowed.least == num_touched(127 + 64, 16)
    assert make_groups(4096)[0].useful == 4 * 64, "no more than the sequence has"


def test_memory_for_everything_gives_what_can_be_filled_and_no_more() -> None:
    groups = make_groups(None, 128)
    useful = tuple(group.useful for group in groups)
    assert share_out(pool_bytes(useful, groups), groups) == useful
    assert share_out(1 << 40, groups) == useful


def test_what_windows_cannot_fill_goes_to_the_group_without_one() -> None:
    full, windowed = make_groups(None, 32, sizes=(1, 5))
    rest = 100
    assert share_out(windowed.useful * 5 + rest, (full, windowed)) == (rest, windowed.useful)
    assert share_out(windowed.useful * 5 + rest, (windowed, full)) == (windowed.useful, rest)


def test_layers_that_all_see_everything_or_all_have_one_window_take_the_memory() -> None:
    for window in (None, 512):
        assert share_out(100, make_groups(window, sizes=(3,))) == (33,)


def test_a_window_as_long_as_the_context_shares_page_for_page() -> None:
    assert share_out(300, make_groups(None, 1024, sizes=(1, 2))) == (100, 100)


def test_without_memory_for_a_page_of_each_group_there_is_none() -> None:
    groups = make_groups(None, 32, sizes=(1, 5))
    assert share_out(6, groups) == (1, 1)
    for num_bytes in (5, 0, -1):
        assert share_out(num_bytes, groups) == (0, 0)


@pytest.mark.parametrize("windows", [(None, 32), (32, None), (64, 32), (None, 32, 64)])
def test_an_asked_number_is_that_of_the_group_without_a_window_or_with_the_widest(
    windows: tuple[int | None, ...],
) -> None:
    groups = make_groups(*windows, sizes=(1, 1, 1))
    widest = None if None in windows else 64
    expected = [500 if group.window == widest else group.useful for group in groups]
    assert as_asked(500, groups) == tuple(expected)
    assert as_asked(3, groups) == (3,) * len(windows)


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, tuple[PageGroup, ...]]:
    """Bytes, and the groups of a decoder with one window and layers without."""
    windows = draw(st.sampled_from([(None, 40), (40, None), (None, 300), (200, None), (None, 1)]))
    sizes = draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    groups = make_groups(
        *windows,
        sizes=sizes,
        max_model_len=draw(st.integers(2, 5000)),
        max_num_rows=draw(st.integers(1, 64)),
        max_num_tokens=draw(st.sampled_from([1, 16, 100, 500])),
        page_size=draw(st.sampled_from([1, 3, 16])),
    )
    filled = pool_bytes([group.useful for group in groups], groups)
    return sum(sizes) + filled * draw(st.integers(0, 120)) // 100, groups


@given(problem=problems())
def test_the_pages_fit_and_no_group_has_more_than_it_can_fill(
    problem: tuple[int, tuple[PageGroup, ...]],
) -> None:
    num_bytes, groups = problem
    found = dict(zip((group.window for group in groups), share_out(num_bytes, groups), strict=True))
    assert pool_bytes(tuple(found.values()), groups) <= num_bytes
    assert all(1 <= found[group.window] <= group.useful for group in groups)
    assert found[None] >= max(found.values()), "a row has no more pages in a windowed group"


@given(problem=problems())
def test_short_and_long_sequences_have_half_of_what_they_could_have_at_least(
    problem: tuple[int, tuple[PageGroup, ...]],
) -> None:
    num_bytes, groups = problem
    found = dict(zip((group.window for group in groups), share_out(num_bytes, groups), strict=True))
    (full,) = (group for group in groups if group.window is None)
    (windowed,) = (group for group in groups if group.window is not None)
    equal = num_bytes // (full.page_bytes + windowed.page_bytes)
    assert 2 * (found[windowed.window] + 1) > min(equal, windowed.useful)
    if found[windowed.window] > windowed.least:  # else windows have only what one sequence needs
        part = found[None] / full.useful  # of all rows, at their longest
        filled = full.page_bytes * full.useful + windowed.page_bytes * windowed.useful
        assert 2 * (part + 1 / full.useful) > min(num_bytes / filled, 1)


@given(problem=problems(), page_size=st.just(16))
def test_the_longest_sequence_is_never_shorter_than_with_equal_counts(
    problem: tuple[int, tuple[PageGroup, ...]], page_size: int
) -> None:
    num_bytes, groups = problem
    equal = num_bytes // sum(group.page_bytes for group in groups)
    windows = [group.window for group in groups]
    one, other = (
        longest_sequence(5000, num_pages=counts, windows=windows, page_size=page_size)
        for counts in (share_out(num_bytes, groups), [min(equal, group.useful) for group in groups])
    )
    assert one >= other


def test_the_longest_sequence_is_bounded_by_pages_unless_a_window_frees_them() -> None:
    def longest(*num_pages: int) -> int:
        return longest_sequence(1000, num_pages=num_pages, windows=(None, 64), page_size=16)

    assert longest(50, 5) == 800
    assert longest(50, 4) == 64, "a window of 64 can touch 5 pages"
    assert longest(100, 5) == 1000
