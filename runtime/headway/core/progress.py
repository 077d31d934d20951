"""How a start tells where it is: what is being done, how much of it is, and how much there is to do."""

from collections.abc import Callable

WEIGHTS = "Loading weights"  # counted in bytes
KERNELS = "Compiling kernels"  # counted in steps of the warm-up

Report = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """A `Report` for whoever does not care."""
