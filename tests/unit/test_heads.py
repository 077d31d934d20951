"""The head plan: who owns which heads, for any counts."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import ConfigError
from headway.sharding.heads import HeadPlan, RankHeads

SHAPES = [
    *((71, 1, world_size) for world_size in (2, 3, 4, 7)),
    *((14, 2, world_size) for world_size in (3, 4, 5)),
    *((40, 10, world_size) for world_size in (3, 4, 8)),
    *((28, 4, world_size) for world_size in (3, 5, 8)),
    *((32, 8, world_size) for world_size in (3, 5, 6, 7)),
    *((32, 32, world_size) for world_size in (5, 7)),
    *((9, 3, world_size) for world_size in (2, 4)),
]


@st.composite
def shapes(draw: st.DrawFn, max_q: int = 96) -> tuple[int, int, int]:
    num_kv = draw(st.integers(1, max_q))
    num_q = num_kv * draw(st.integers(1, max_q // num_kv))
    return num_q, num_kv, draw(st.integers(1, num_q))


def check(ranks: tuple[RankHeads, ...], num_q: int, num_kv: int) -> None:
    """Every query head once, its KV head beside it, no other KV head, bounds and replicas right."""
    group = num_q // num_kv
    assert [head for rank in ranks for head in rank.q] == list(range(num_q))
    seen: set[int] = set()
    for rank in ranks:
        assert set(rank.kv) == {head // group for head in rank.q}
        assert len(rank.group_bounds) == rank.num_kv_heads + 1
        assert rank.group_bounds[0] == 0
        assert rank.group_bounds[-1] == rank.num_q_heads
        for local, (start, stop) in enumerate(pairwise(rank.group_bounds)):
            assert start < stop
            assert {rank.q[head] // group for head in range(start, stop)} == {rank.kv[local]}
        assert rank.num_replicas == len(seen & set(rank.kv))
        seen |= set(rank.kv)


@settings(deadline=None)
@given(shapes())
def test_every_query_head_is_owned_once_with_just_its_kv_head_on_the_same_rank(
    shape: tuple[int, int, int],
) -> None:
    plan = HeadPlan(*shape)
    assert len(plan.ranks) == shape[2]
    check(plan.ranks, *shape[:2])
    assert plan.kv_replicas == sum(rank.num_kv_heads for rank in plan.ranks) - shape[1]


def bugs() -> dict[str, Callable[[tuple[RankHeads, ...]], list[RankHeads]]]:
    def change(index: int, **fields: object) -> Callable[[tuple[RankHeads, ...]], list[RankHeads]]:
        return lambda ranks: [
            replace(rank, **fields) if i == index else rank  # type: ignore[arg-type]
            for i, rank in enumerate(ranks)
        ]

    return {
        "a query head twice": change(1, q=range(4, 9)),
        "a KV head that nobody needs": change(0, kv=range(3)),
        "a KV head missing": change(1, kv=range(1, 2)),
        "bounds of equal groups": change(1, group_bounds=(0, 2, 4)),
        "a replica not counted": change(1, num_replicas=0),
        "a rank lost": lambda ranks: list(ranks[:-1]),
    }


@pytest.mark.parametrize("bug", bugs())
def test_the_check_finds_a_planted_bug(bug: str) -> None:
    plan = HeadPlan(9, 3, 2)
    check(plan.ranks, 9, 3)
    with pytest.raises(AssertionError):
        check(tuple(bugs()[bug](plan.ranks)), 9, 3)


def merits(sizes: list[int], group: int) -> tuple[int, int, int, int]:
    """What a plan minimises, in order: most KV heads, bottleneck, KV heads in all, unevenness."""
    held, start = [], 0
    for size in sizes:
        held.append(len({head // group for head in range(start, start + size)}))
        start += size
    costs = [size + kv for size, kv in zip(sizes, held, strict=True)]
    return max(held), max(costs), sum(held), sum(size**2 for size in sizes)


def best_by_trying_all(num_q: int, num_kv: int, world_size: int) -> tuple[int, int, int, int]:
    return min(
        merits([stop - start for start, stop in pairwise((0, *cuts, num_q))], num_q // num_kv)
        for cuts in combinations(range(1, num_q), world_size - 1)
    )


@pytest.mark.parametrize("num_q", range(1, 13))
def test_the_plan_is_the_best_of_all_splits(num_q: int) -> None:
    for num_kv in (kv for kv in range(1, num_q + 1) if num_q % kv == 0):
        for world_size in range(1, num_q + 1):
            sizes = [rank.num_q_heads for rank in HeadPlan(num_q, num_kv, world_size).ranks]
            found = merits(sizes, num_q // num_kv)
            assert found == best_by_trying_all(num_q, num_kv, world_size), (num_q, num_kv, world_size, sizes)


@pytest.mark.parametrize(("num_q", "num_kv", "world_size"), SHAPES)
def test_known_shapes_have_the_fewest_kv_heads_on_a_rank_then_the_least_bottleneck(
    num_q: int, num_kv: int, world_size: int
) -> None:
    plan = HeadPlan(num_q, num_kv, world_size)
    check(plan.ranks, num_q, num_kv)
    worst = max(rank.num_kv_heads for rank in plan.ranks), max(rank.cost for rank in plan.ranks)
    assert worst == least_worst(num_q, num_kv, world_size)


def least_worst(num_q: int, num_kv: int, world_size: int) -> tuple[int, int]:
    """Most KV heads and bottleneck, by dynamic programming over every cut: trying all would take too long."""
    group = num_q // num_kv
    least = {0: {(0, 0)}}
    for _ in range(world_size):
        following: dict[int, set[tuple[int, int]]] = {}
        for start, found in least.items():
            for stop in range(start + 1, num_q + 1):
                held = len({head // group for head in range(start, stop)})
                worse = {(max(kv, held), max(cost, stop - start + held)) for kv, cost in found}
                following[stop] = front(following.get(stop, set()) | worse)
        least = following
    return min(least[num_q])


def front(pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Those than which no other is better in one way and no worse in the other."""
    return {(a, b) for a, b in pairs if not any((c, d) != (a, b) and c <= a and d <= b for c, d in pairs)}


@pytest.mark.parametrize(
    ("shape", "num_q_heads", "num_kv_heads", "replicas"),
    [
        ((40, 10, 4), [10, 10, 10, 10], [3, 3, 3, 3], 2),
        ((14, 2, 3), [7, 4, 3], [1, 1, 1], 1),
        ((28, 4, 3), [10, 9, 9], [2, 2, 2], 2),
        ((71, 1, 2), [36, 35], [1, 1], 1),
        ((71, 1, 4), [18, 18, 18, 17], [1, 1, 1, 1], 3),
        ((32, 32, 7), [5, 5, 5, 5, 4, 4, 4], [5, 5, 5, 5, 4, 4, 4], 0),
        ((9, 3, 4), [3, 3, 2, 1], [1, 1, 1, 1], 1),
        ((28, 4, 8), [4, 3, 4, 3, 4, 3, 4, 3], [1] * 8, 4),
    ],
)
def test_plans_written_out(
    shape: tuple[int, int, int], num_q_heads: list[int], num_kv_heads: list[int], replicas: int
) -> None:
    plan = HeadPlan(*shape)
    assert [rank.num_q_heads for rank in plan.ranks] == num_q_heads
    assert [rank.num_kv_heads for rank in plan.ranks] == num_kv_heads
    assert plan.kv_replicas == replicas


def test_a_ragged_rank_states_where_its_groups_end() -> None:
    first, second = HeadPlan(9, 3, 2).ranks
    assert (first.q, first.kv, first.group_bounds) == (range(5), range(2), (0, 3, 5))
    assert (second.q, second.kv, second.group_bounds) == (range(5, 9), range(1, 3), (0, 1, 4))


def test_imbalance_and_replicated_bytes_are_those_of_the_plan() -> None:
    assert HeadPlan(32, 8, 4).imbalance == 0
    assert HeadPlan(32, 8, 3).imbalance == pytest.approx(15 / (40 / 3) - 1)
    plan = HeadPlan(71, 1, 4)
    assert plan.replicated_bytes(head_dim=64, dtype_bytes=2, num_tokens=100, num_layers=3) == 230_400
    assert HeadPlan(32, 8, 4).replicated_bytes(head_dim=64, dtype_bytes=2, num_tokens=100) == 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((14, 2, 15), r"tp must be at most 14 \(the model's query heads\), got 15"),
        ((14, 2, 0), "tp must be at least 1, got 0"),
        ((0, 2, 1), "num_q_heads must be at least 1, got 0"),
        ((14, -2, 1), "num_kv_heads must be at least 1, got -2"),
        ((14, 4, 1), r"num_q_heads must be a multiple of num_kv_heads \(4\), got 14"),
    ],
)
def test_a_shape_without_a_plan_names_field_limit_and_value(
    shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        HeadPlan(*shape)
