"""Stop strings against a reference that looks at one character at a time."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.serving.stops import StopFilter

AB = st.text("ab", min_size=1, max_size=4)


def reference(text: str, stops: Sequence[str], first_end: int) -> str:
    """`text` up to the first stop string that ends at `first_end` characters or later."""
    for end in range(first_end, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - len(max(found, key=len))]
    return text


def run(pieces: Sequence[str], stops: Sequence[str], min_tokens: int = 0) -> str:
    stop_filter, out = StopFilter(stops, min_tokens), ""
    for number, piece in enumerate(pieces, start=1):
        out += stop_filter.push(piece, number)
        if stop_filter.matched:
            return out
    return out + stop_filter.flush()


@given(st.lists(AB, max_size=8), st.lists(AB, min_size=1, max_size=3))
@settings(max_examples=300)
def test_the_cut_does_not_depend_on_how_text_falls_into_tokens(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    assert run(pieces, stops) == run(list(text), stops) == reference(text, stops, 1)


@given(st.text("ab", max_size=20), st.lists(AB, min_size=1, max_size=3), st.integers(0, 10))
@settings(max_examples=300)
def test_a_stop_string_completed_before_min_tokens_does_not_count(
    text: str, stops: list[str], min_tokens: int
) -> None:
    assert run(list(text), stops, min_tokens) == reference(text, stops, max(1, min_tokens))


@given(st.lists(AB, max_size=8), st.lists(AB, min_size=1, max_size=3))
@settings(max_examples=100)
def test_nothing_passes_that_must_be_taken_back(pieces: list[str], stops: list[str]) -> None:
    stop_filter, out = StopFilter(stops), ""
    for number, piece in enumerate(pieces, start=1):
        out += stop_filter.push(piece, number)
        assert reference("".join(pieces), stops, 1).startswith(out)
        if stop_filter.matched:
            break


def test_only_what_may_be_a_start_is_held_back() -> None:
    stop_filter = StopFilter(["END"])
    assert [stop_filter.push(text, 1) for text in ("a", "bE", "N", "x")] == ["a", "b", "", "ENx"]


def test_the_reference_finds_a_filter_that_forgets_what_it_held() -> None:
    class Forgetful(StopFilter):
        def push(self, text: str, num_tokens: int) -> str:
            self._held = ""
            return super().push(text, num_tokens)

    stop_filter = Forgetful(["ab"])
    assert stop_filter.push("a", 1) + stop_filter.push("b", 2) != reference("ab", ["ab"], 1)
