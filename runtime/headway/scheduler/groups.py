"""The pages of all groups together: what a sequence needs, gets, and leaves behind its window.

Layers that see everything and layers with a window keep their pages in separate groups. A table has an
entry for every page of the sequence in every group; in a windowed group the pages at its start are given
back as they leave the window, and their entries stay, so that all tables of a sequence are equally long.
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Items

from headway.core.errors import ConfigError
from headway.core.step import PageGrant
from headway.scheduler.pages import IntegrityError, PageAllocator
from headway.scheduler.sequence import NEVER, Sequence
from headway.sharding.pages import num_touched


class PageGroups:
    """One allocator a group. `windows` has an entry a group: positions a query sees, or None for all."""

    def __init__(self, *, num_pages: Items[int], windows: Items[int | None], page_size: int) -> None:
        if len(num_pages) != len(windows) or not num_pages:
            raise ConfigError(f"num_pages must have one entry a group ({len(windows)}), got {len(num_pages)}")
        self.page_size = page_size
        self.allocators = tuple(PageAllocator(count) for count in num_pages)
        self._windowed = tuple((group, window) for group, window in enumerate(windows) if window is not None)
        # The most pages that a sequence must hold at once in each group, to compute one more token.
        self._span = tuple(NEVER if window is None else num_touched(window, page_size) for window in windows)

    @property
    def windowed(self) -> bool:
        return bool(self._windowed)

    def num_pages(self, num_tokens: int) -> int:
        """Pages for `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def room(self, sequence: Sequence) -> int:
        """How many more tokens of `sequence` could be computed with every free page."""
        free = min(allocator.num_free for allocator in self.allocators)
        return sequence.num_slots + free * self.page_size - sequence.num_computed

    def grow(self, sequence: Sequence, num_tokens: int) -> list[PageGrant]:
        """Give `sequence` the pages that `num_tokens` tokens need and it lacks. Ask `room` before."""
        count = self.num_pages(num_tokens - sequence.num_slots)
        if count <= 0:
            return []
        if sequence.row is None:
            raise IntegrityError(f"request {sequence.request.request_id} was granted pages without a row")
        grants = []
        for group, allocator in enumerate(self.allocators):
            pages = allocator.allocate(count)
            sequence.tables[group].extend(pages)
            grants.append(PageGrant(row=sequence.row, group=group, pages=pages))
        sequence.num_slots += count * self.page_size
        if self._windowed:
            self._set_drop_at(sequence)
        return grants

    def drop_behind_window(self, sequence: Sequence) -> None:
        """Release the pages that no query from `num_computed` on can see. Query q sees p > q - window."""
        for group, window in self._windowed:
            end = max(0, sequence.num_computed - window + 1) // self.page_size
            for page in sequence.tables[group][sequence.num_dropped[group] : end]:
                self.allocators[group].release(page)
            sequence.num_dropped[group] = max(end, sequence.num_dropped[group])
        self._set_drop_at(sequence)

    def free(self, sequence: Sequence) -> None:
        """Release all pages of `sequence` and empty its tables."""
        for group, allocator in enumerate(self.allocators):
            for page in sequence.tables[group][sequence.num_dropped[group] :]:
                allocator.release(page)
            sequence.tables[group].clear()
            sequence.num_dropped[group] = 0
        sequence.num_slots = 0
        sequence.drop_at = NEVER

    def claims(self, sequence: Sequence, growth: int) -> list[int]:
        """Pages, a group, that `sequence` lacks for all its tokens and `growth` pages of those to come."""
        known = self.num_pages(sequence.num_tokens)
        wanted = min(known + growth, self.num_pages(sequence.limit - 1))
        tables = zip(self._span, sequence.tables, sequence.num_dropped, strict=True)
        return [max(0, min(wanted, span) - len(table) + dropped) for span, table, dropped in tables]

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Raise IntegrityError unless each page has as many references as tables of `sequences` hold it."""
        held: list[Counter[int]] = [Counter() for _ in self.allocators]
        for sequence in sequences:
            for group, table in enumerate(sequence.tables):
                held[group].update(table[sequence.num_dropped[group] :])
        for group, allocator in enumerate(self.allocators):
            allocator.check()
            for page in range(allocator.num_pages):
                if allocator.num_refs(page) != held[group][page]:
                    raise IntegrityError(
                        f"page {page} of group {group} is in {held[group][page]} tables, "
                        f"but has {allocator.num_refs(page)} references"
                    )

    def _set_drop_at(self, sequence: Sequence) -> None:
        sequence.drop_at = min(
            (sequence.num_dropped[group] + 1) * self.page_size + window - 1
            for group, window in self._windowed
        )
