"""What is wrong with the words of a command line, in one line."""

from typing import Any

import typer

from headway.core.errors import shorten

# Typer has click within it or beside it, by its version: this is the UsageError of either.
UsageError: Any = typer.BadParameter.__base__


def usage_line(error: Any) -> str:
    """What a UsageError says, with the value that was given. Empty where help was shown instead."""
    text = " ".join(error.format_message().split()).rstrip(".")
    wrong: list[Any] = getattr(
        error.__cause__, "errors", list
    )()  # pydantic's, of typers that convert with it
    got = f", got {shorten(wrong[0]['input'])}" if wrong else ""
    return text[:1].lower() + text[1:] + got
