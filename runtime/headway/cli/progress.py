"""A bar on the terminal for each part of a start."""

from collections.abc import Iterator
from contextlib import contextmanager

from headway.cli.units import format_bytes
from headway.core.progress import WEIGHTS, Report


@contextmanager
def progress_bars() -> Iterator[Report]:
    """Show bars on stderr while the block runs; call what it gives as `core.progress` says.

    Where stderr is no terminal nothing is shown: a log needs no bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
    console = Console(stderr=True)
    hidden = not console.is_terminal
    bars: dict[str, TaskID] = {}
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=hidden) as progress:

        def report(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, amount="")
            show = format_bytes if what == WEIGHTS else str
            progress.update(bars[what], completed=done, total=total, amount=f"{show(done)} of {show(total)}")

        yield report
