"""Uneven shards of MLP and vocabulary."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import ConfigError
from headway.sharding.split import split_evenly


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 64))
def test_shards_cover_the_axis_in_order_and_differ_by_at_most_one_unit(
    size: int, world_size: int, multiple: int
) -> None:
    if world_size > -(-size // multiple):
        with pytest.raises(ConfigError, match="tp must be at most"):
            split_evenly(size, world_size, multiple)
        return
    shards = split_evenly(size, world_size, multiple)
    assert [value for shard in shards for value in shard] == list(range(size))
    lengths = [len(shard) for shard in shards]
    assert len(shards) == world_size
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= multiple
    assert all(shard.start % multiple == 0 for shard in shards)


def test_the_last_ranks_take_what_is_left_over() -> None:
    assert [len(shard) for shard in split_evenly(10, 4)] == [2, 2, 3, 3]
    assert split_evenly(193, 2, 64) == (range(128), range(128, 193))


def test_a_split_that_leaves_a_rank_empty_names_axis_limit_and_value() -> None:
    with pytest.raises(ConfigError, match=r"^tp must be at most 3 \(vocabulary 3\), got 4$"):
        split_evenly(3, 4, name="vocabulary")
    with pytest.raises(ConfigError, match=r"^tp must be at most 2 \(mlp 100 in units of 64\), got 3$"):
        split_evenly(100, 3, 64, name="mlp")
    with pytest.raises(ConfigError, match=r"tp must be at least 1, got 0"):
        split_evenly(3, 0)
    with pytest.raises(ConfigError, match=r"mlp and its multiple must be at least 1, got 0 and 1"):
        split_evenly(0, 1, name="mlp")
