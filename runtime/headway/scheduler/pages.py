"""The pages of one group: which are free, and how many hold on to each of the others."""

from headway.core.errors import ConfigError, HeadwayError


class IntegrityError(HeadwayError):
    """The scheduler's books contradict themselves. An assertion in kind, but it holds under `python -O`."""


class PageAllocator:
    """Hands out pages 0 to num_pages - 1 of one group, and counts the references to each. O(1) a page.

    Page 0 is a page like any other: the kernels go by lengths, so nothing needs a page that means "none".

    A released page may be granted by the very next plan, even while a launched step still reads it: every
    rank executes the plans in order, so whoever writes the page does so after its last reader.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise ConfigError(f"num_pages must be at least 1, got {num_pages}")
        self.num_pages = num_pages
        self.num_cached = 0  # pages that nobody holds, kept for their content: 0 until prefixes are reused
        self._free = list(range(num_pages - 1, -1, -1))  # a stack; the lowest pages go first
        self._num_refs = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_refs(self, page: int) -> int:
        """How many hold `page`; 0 when it is free."""
        return self._num_refs[page]

    def can_allocate(self, num_pages: int) -> bool:
        return num_pages <= len(self._free)

    def allocate(self, num_pages: int) -> tuple[int, ...]:
        """Take `num_pages` free pages, with one reference each. Ask `can_allocate` before."""
        if not self.can_allocate(num_pages):
            raise IntegrityError(f"{num_pages} pages were taken where {len(self._free)} are free")
        pages = tuple(self._free.pop() for _ in range(num_pages))
        for page in pages:
            self._num_refs[page] = 1
        return pages

    def share(self, page: int) -> None:
        """Add a reference to a live page."""
        self._require_live(page)
        self._num_refs[page] += 1

    def release(self, page: int) -> None:
        """Drop a reference; the last one frees the page."""
        self._require_live(page)
        self._num_refs[page] -= 1
        if not self._num_refs[page]:
            self._free.append(page)

    def check(self) -> None:
        """Raise IntegrityError unless free + cached + live == num_pages, each page counted once. O(pages)."""
        free, cached = len(self._free), self.num_cached
        live = sum(count > 0 for count in self._num_refs)
        if free + cached + live != self.num_pages:
            total = free + cached + live
            raise IntegrityError(
                f"free {free} + cached {cached} + live {live} = {total}, not num_pages {self.num_pages}"
            )
        if len(set(self._free)) != free:
            raise IntegrityError(f"{free - len(set(self._free))} pages are twice in the free list")
        both = [page for page in self._free if self._num_refs[page]]
        if both:
            raise IntegrityError(f"pages {both[:8]} are both free and live")

    def _require_live(self, page: int) -> None:
        if self._num_refs[page] < 1:
            raise IntegrityError(f"page {page} is used by someone who does not hold it")
