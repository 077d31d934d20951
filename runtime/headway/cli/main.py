"""`headway`: the commands, and how an error leaves the program: one line on stderr and an exit code.

Each command is a file beside this one. They import what is heavy inside the function, so that `--help`
answers at once.
"""

import sys

import typer

from headway.cli.bench import app as bench
from headway.cli.chat import chat
from headway.cli.demo import demo
from headway.cli.generate import generate
from headway.cli.plan import plan
from headway.cli.serve import serve
from headway.core import env
from headway.core.errors import ConfigError, HeadwayError, InvalidRequest, ModelError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def headway() -> None:
    """Serve language models on any number of GPUs."""


app.command()(demo)
app.command()(serve)
app.command()(plan)
app.add_typer(bench, name="bench")
app.command()(generate)
app.command()(chat)


def main() -> None:
    env.quiet_grpc()
    try:
        app()
    except HeadwayError as error:
        print(f"headway: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, ConfigError | ModelError | InvalidRequest) else 1)


if __name__ == "__main__":
    main()
