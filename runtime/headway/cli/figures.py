"""Figures as a table, and as JSON for whoever keeps them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from headway.core.errors import ConfigError

Output = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")]


def check_output(output: Path | None) -> None:
    """Raises ConfigError where no file can be written: told before minutes of measuring."""
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise ConfigError(f"json must be a file in a folder that exists, got '{output}'")


def or_dash(value: float | None, form: str = "{:.3f}") -> str:
    return "-" if value is None else form.format(value)


def report(title: str, columns: Any, rows: Any, figures: Any, output: Path | None) -> None:
    """The table on stdout, if it has rows; the figures as JSON in `output`, or on stdout's last line where it
    is a pipe.
    """
    from headway.cli.report import print_line
    from headway.cli.table import print_table

    if rows:
        print_table(title, columns, rows)
    if figures is None:
        return
    text = json.dumps(figures)
    if output is not None:
        output.write_text(text + "\n")
    elif not sys.stdout.isatty():
        print_line(text)
