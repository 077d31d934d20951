"""Stop strings: text that may be the start of one waits until that is decided."""

from collections.abc import Sequence


class StopFilter:
    """Passes text on up to the first stop string, which is cut off.

    The first is the one whose last character comes first; of those, the longest. So the result does not
    depend on how the text is split into tokens. A stop string counts only when it is completed by token
    number `min_tokens` or a later one (numbered from 1).
    """

    def __init__(self, stops: Sequence[str], min_tokens: int = 0) -> None:
        self._stops = tuple(stops)
        self._min_tokens = min_tokens
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, num_tokens: int) -> str:
        """Take the text that token number `num_tokens` completed; return what is certain to stay."""
        if not self._stops or not text:
            return text
        num_held = len(self._held)
        text = self._held + text
        if num_tokens >= self._min_tokens:
            found = [match for stop in self._stops if (match := _first(text, stop, num_held))]
            if found:
                _end, start, self.matched = min(found)
                self._held = ""
                return text[:start]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of a text in which no stop string was completed."""
        held, self._held = self._held, ""
        return held


def _first(text: str, stop: str, num_held: int) -> tuple[int, int, str] | None:
    """(end, start, stop) of the first occurrence that ends behind the held characters."""
    start = text.find(stop, max(0, num_held - len(stop) + 1))
    return None if start < 0 else (start + len(stop), start, stop)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a start of `stop`, and not all of it."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
