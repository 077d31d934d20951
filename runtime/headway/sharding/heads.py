"""Which rank owns which attention heads, for any number of query heads, KV heads and ranks.

Each rank owns a contiguous range of query heads and exactly the KV heads those need. A group is a KV
head with the query heads that read it; where a group is cut, its KV head is held by each rank that has a
part of it.
"""

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import pairwise

from headway.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RankHeads:
    """The heads of one rank, as ranges of the model's head numbers.

    group_bounds: the rank's KV head g serves its query heads [group_bounds[g], group_bounds[g + 1]),
        counted from the rank's first; groups may differ in size.
    num_replicas: how many of the KV heads are held by a rank before this one too.
    """

    q: range
    kv: range
    group_bounds: tuple[int, ...]
    num_replicas: int = 0

    @property
    def num_q_heads(self) -> int:
        return len(self.q)

    @property
    def num_kv_heads(self) -> int:
        return len(self.kv)

    @property
    def cost(self) -> int:
        """Projection weights the rank reads, in units of hidden_size * head_dim * 2.

        A query head has a q and an o matrix, a KV head a k and a v matrix, all of one size.
        """
        return len(self.q) + len(self.kv)


@dataclass(frozen=True)
class HeadPlan:
    """The split of the heads over `world_size` ranks whose worst rank is best.

    No rank has more KV heads than it must, num_kv_heads / world_size rounded up: all ranks have as many
    pages as the one with the largest pages can hold, and decoding reads them. Of such splits, the one whose
    costliest rank is cheapest, even if that cuts groups; then the one with the fewest KV heads in all, then
    the one with the most even query heads (smallest sum of squares).

    Raises ConfigError where no split exists.
    """

    num_q_heads: int
    num_kv_heads: int
    world_size: int
    ranks: tuple[RankHeads, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()
        group = self.num_q_heads // self.num_kv_heads
        max_kv = -(-self.num_kv_heads // self.world_size)
        cuts = _cut(self.num_q_heads, group, self.world_size, max_kv)
        held_before = 0
        ranks = []
        for start, stop in pairwise(cuts):
            ranks.append(_rank_heads(range(start, stop), group, held_before))
            held_before = ranks[-1].kv.stop
        object.__setattr__(self, "ranks", tuple(ranks))

    def _check(self) -> None:
        for name, value in (
            ("num_q_heads", self.num_q_heads),
            ("num_kv_heads", self.num_kv_heads),
            ("tp", self.world_size),
        ):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.num_q_heads % self.num_kv_heads:
            limit = f"a multiple of num_kv_heads ({self.num_kv_heads})"
            raise ConfigError(f"num_q_heads must be {limit}, got {self.num_q_heads}")
        if self.world_size > self.num_q_heads:
            limit = f"{self.num_q_heads} (the model's query heads)"
            raise ConfigError(f"tp must be at most {limit}, got {self.world_size}")

    @property
    def kv_replicas(self) -> int:
        """KV heads held over all ranks, beyond one of each."""
        return sum(rank.num_replicas for rank in self.ranks)

    @property
    def imbalance(self) -> float:
        """How far the costliest rank lies above the mean, as a fraction: 0 is a perfect balance."""
        costs = [rank.cost for rank in self.ranks]
        return max(costs) * len(costs) / sum(costs) - 1

    def replicated_bytes(
        self, *, head_dim: int, dtype_bytes: int, num_tokens: int, num_layers: int = 1
    ) -> int:
        """Bytes of KV cache that replicas take over all ranks for `num_tokens` cached tokens."""
        return self.kv_replicas * 2 * head_dim * dtype_bytes * num_tokens * num_layers


def _rank_heads(q: range, group: int, held_before: int) -> RankHeads:
    """`held_before`: the KV head behind the last one of the rank before."""
    kv = range(q.start // group, (q.stop - 1) // group + 1)
    bounds = [min(max(head * group, q.start), q.stop) - q.start for head in range(kv.start, kv.stop + 1)]
    return RankHeads(q=q, kv=kv, group_bounds=tuple(bounds), num_replicas=int(kv.start < held_before))


def _cut(num_q: int, group: int, world_size: int, max_kv: int) -> list[int]:
    """The query head at which each rank starts, and the end.

    The least cost of the costliest rank is found by bisection, as a greedy walk that gives each rank all it
    may take needs the fewest ranks; a rank too many can always be cut off another, which costs none more.
    Within it, dynamic programming over (ranks left, first head) minimises what adds up over ranks.
    """
    max_cost = bisect_left(
        range(2 * num_q + 1), True, lo=2, key=lambda cost: _fits(num_q, group, world_size, cost, max_kv)
    )
    ends = [_reach(start, num_q, group, max_cost, max_kv) for start in range(num_q)]

    # best[start]: (KV heads held, sum of squared query heads) of the cheapest cover of [start, num_q).
    best: dict[int, tuple[int, int]] = {num_q: (0, 0)}
    choices: list[dict[int, int]] = []
    for _ in range(world_size):
        longer: dict[int, tuple[int, int]] = {}
        choice: dict[int, int] = {}
        for start, end in enumerate(ends):
            for stop in range(end, start, -1):  # of equals the longest, so that larger shares come first
                if stop not in best:
                    continue
                held, squares = best[stop]
                value = (held + _num_held(start, stop, group), squares + (stop - start) ** 2)
                if start not in longer or value < longer[start]:
                    longer[start], choice[start] = value, stop
        best = longer
        choices.append(choice)

    cuts = [0]
    for choice in reversed(choices):
        cuts.append(choice[cuts[-1]])
    return cuts


def _num_held(start: int, stop: int, group: int) -> int:
    """KV heads that the query heads [start, stop) need."""
    return (stop - 1) // group - start // group + 1


def _reach(start: int, num_q: int, group: int, max_cost: int, max_kv: int) -> int:
    """The largest end of a rank's query heads from `start` within both limits."""
    stop = start
    while stop < num_q:
        held = _num_held(start, stop + 1, group)
        if held > max_kv or stop + 1 - start + held > max_cost:
            break
        stop += 1
    return stop


def _fits(num_q: int, group: int, world_size: int, max_cost: int, max_kv: int) -> bool:
    start = 0
    for _ in range(world_size):
        start = _reach(start, num_q, group, max_cost, max_kv)
        if start == num_q:
            return True
    return False
