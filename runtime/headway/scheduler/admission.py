"""Who is admitted? The first in the queue, if it leaves the running rows room to grow.

Without headroom a newcomer takes the last page, the next row that crosses a page's end preempts it, and
its prefill was for nothing. So beside the pages of its own known tokens (and those that running rows still
need for theirs), a newcomer must leave one page for each running row and itself: then nobody lacks a page
for the next page_size steps on its account. A sequence that was preempted in spite of this must leave more
each time, and at last as much as everyone before it can ever need. Later arrivals are preempted before it,
so it is then never preempted again: at most `len(GROWTH_PAGES)` times in all.
"""

from headway.scheduler.groups import PageGroups
from headway.scheduler.sequence import NEVER, Sequence

GROWTH_PAGES = (1, 4, 16, 64)  # headroom for each row, by how often the newcomer was preempted; then: all


class Headroom:
    """The pages that newcomers may take in one plan."""

    def __init__(self, groups: PageGroups, running: list[Sequence]) -> None:
        self._groups = groups
        self._running = running
        self._growth = -1
        self._spare: list[int] = []

    def take(self, newcomer: Sequence) -> bool:
        """Whether the newcomer may come in; if so, its pages are no longer there for the next one.

        True for a sequence alone: nobody else holds pages, and no sequence may outgrow the pool. False
        where a row has just been preempted: what is left of its pages is less than it would need itself.
        """
        preempted = newcomer.num_preempted
        growth = GROWTH_PAGES[preempted] if preempted < len(GROWTH_PAGES) else NEVER
        claims = self._groups.claims(newcomer, growth)
        free = (allocator.num_free for allocator in self._groups.allocators)
        if any(claim > num for claim, num in zip(claims, free, strict=True)):
            return False  # the usual answer under load, without a look at every row
        if growth != self._growth:
            self._measure(growth)
        spare = [num - claim for num, claim in zip(self._spare, claims, strict=True)]
        if min(spare) < 0:
            return False
        self._spare = spare
        return True

    def _measure(self, growth: int) -> None:
        self._growth = growth
        self._spare = [allocator.num_free for allocator in self._groups.allocators]
        for sequence in self._running:
            for group, claim in enumerate(self._groups.claims(sequence, growth)):
                self._spare[group] -= claim
