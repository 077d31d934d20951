"""`headway`: the commands, and how an error leaves the program: one line on stderr and an exit code.

Each command is a file beside this one. They import what is heavy inside the function, so that `--help`
answers at once.
"""

import logging
import sys
from typing import Annotated, NoReturn

import typer

from headway.cli.bench import app as bench
from headway.cli.chat import chat
from headway.cli.demo import demo
from headway.cli.generate import generate
from headway.cli.plan import plan
from headway.cli.serve import serve
from headway.cli.usage import UsageError, usage_line
from headway.core import env
from headway.core.errors import ConfigError, HeadwayError, InvalidRequest, ModelError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def show_version(asked: bool) -> None:
    if asked:
        from headway.core.version import __version__

        typer.echo(f"headway {__version__}")
        raise typer.Exit


@app.callback()
def headway(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Say which Headway this is."),
    ] = False,
) -> None:
    """Serve language models on any number of GPUs."""


app.command()(demo)
app.command()(serve)
app.command()(plan)
app.add_typer(bench, name="bench")
app.command()(generate)
app.command()(chat)


def main() -> None:
    env.quiet_grpc()
    if logging.lastResort is not None:  # what warnings are written by where no handler was set up
        logging.lastResort.setFormatter(logging.Formatter("headway: %(message)s"))
    try:
        sys.exit(app(prog_name="headway", standalone_mode=False))
    except HeadwayError as error:
        _leave(str(error), 2 if isinstance(error, ConfigError | ModelError | InvalidRequest) else 1)
    except UsageError as error:
        _leave(usage_line(error), 2)
    except typer.Abort:
        _leave("stopped", 130)


def _leave(line: str, code: int) -> NoReturn:
    if line:
        print(f"headway: {line}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
