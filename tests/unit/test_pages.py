"""The page allocator: every page is free or live, and the checker says so when it is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import ConfigError
from headway.scheduler.pages import IntegrityError, PageAllocator


class Leaking(PageAllocator):
    def release(self, page: int) -> None:
        self._num_refs[page] -= 1


class FreeingTwice(PageAllocator):
    def release(self, page: int) -> None:
        self._num_refs[page] -= 1
        self._free += (page, page)


class HandingOutLivePages(PageAllocator):
    def allocate(self, num_pages: int) -> tuple[int, ...]:
        pages = super().allocate(num_pages)
        self._free += pages
        return pages


class SwappingAPage(PageAllocator):
    """Its sum is right, but what it frees is not what it was given."""

    def release(self, page: int) -> None:
        super().release(page)
        self._free[-1] = (page + 1) % self.num_pages


def test_all_pages_are_handed_out_once_page_0_among_them() -> None:
    pages = PageAllocator(5)
    assert sorted(pages.allocate(2) + pages.allocate(3)) == [0, 1, 2, 3, 4]
    assert not pages.can_allocate(1)
    assert pages.can_allocate(0)
    pages.check()


def test_taking_more_than_is_free_is_refused_and_takes_nothing() -> None:
    pages = PageAllocator(3)
    pages.allocate(1)
    with pytest.raises(IntegrityError, match="3 pages were taken where 2 are free"):
        pages.allocate(3)
    assert pages.num_free == 2
    pages.check()


def test_a_shared_page_is_free_when_its_last_holder_releases_it() -> None:
    pages = PageAllocator(1)
    (page,) = pages.allocate(1)
    pages.share(page)
    pages.release(page)
    assert (pages.num_free, pages.num_refs(page)) == (0, 1)
    pages.release(page)
    assert (pages.num_free, pages.num_refs(page)) == (1, 0)
    pages.check()


@pytest.mark.parametrize("misuse", [PageAllocator.release, PageAllocator.share])
def test_a_free_page_can_be_neither_released_nor_shared(misuse) -> None:
    pages = PageAllocator(2)
    with pytest.raises(IntegrityError, match="page 1 is used by someone who does not hold it"):
        misuse(pages, 1)


def test_a_pool_without_pages_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_pages must be at least 1, got 0"):
        PageAllocator(0)


def test_a_difference_is_reported_as_the_sum() -> None:
    pages = Leaking(4)
    pages.release(pages.allocate(1)[0])
    with pytest.raises(IntegrityError, match=r"free 3 \+ cached 0 \+ live 0 = 3, not num_pages 4"):
        pages.check()


@pytest.mark.parametrize("planted", [Leaking, FreeingTwice, HandingOutLivePages, SwappingAPage])
def test_the_checker_finds_a_planted_bug(planted: type[PageAllocator]) -> None:
    pages = planted(4)
    taken = pages.allocate(2)
    pages.release(taken[0])
    with pytest.raises(IntegrityError):
        pages.check()


@given(
    num_pages=st.integers(1, 12),
    moves=st.lists(st.tuples(st.sampled_from("asr"), st.integers(0, 11)), max_size=60),
)
def test_pages_agree_with_a_model_of_references(num_pages: int, moves: list[tuple[str, int]]) -> None:
    pages = PageAllocator(num_pages)
    refs: dict[int, int] = {}
    for move, number in moves:
        live = sorted(refs)
        if move == "a" and pages.can_allocate(number):
            taken = pages.allocate(number)
            assert len(set(taken)) == number
            assert not refs.keys() & set(taken)
            refs |= dict.fromkeys(taken, 1)
        elif move == "s" and live:
            page = live[number % len(live)]
            pages.share(page)
            refs[page] += 1
        elif move == "r" and live:
            page = live[number % len(live)]
            pages.release(page)
            refs[page] -= 1
            if not refs[page]:
                del refs[page]
        assert pages.num_free == num_pages - len(refs)
        assert all(pages.num_refs(page) == refs.get(page, 0) for page in range(num_pages))
        pages.check()
