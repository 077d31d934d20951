"""The commands without a server: what they import, what they say of themselves, text from a model here."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from command import environment, run
from headway.cli.main import app
from headway.model.folder import resolve

HEAVY = {"torch", "triton", "ray", "transformers"}


@pytest.mark.parametrize(
    "words",
    [
        "import headway, headway.core.sampling; headway.Client, headway.SamplingParams",
        "headway --help",
        "headway serve --help",
        "headway bench tp --help",
        "headway plan demo --tp 3",
        "headway plan demo --tp 8 --compare --json",
    ],
)
def test_what_should_answer_at_once_imports_nothing_heavy(words: str, tmp_path: Path) -> None:
    call = f"import sys; sys.argv = {words.split()}; from headway.cli.main import main; main()"
    ran = python(f"{call if words.startswith('headway') else words}", tmp_path)
    assert ran.stderr == ""
    assert not HEAVY & set(ran.stdout.splitlines()[-1].split())


def test_what_runs_a_model_would_be_found_out(tmp_path: Path) -> None:
    assert "torch" in python("import headway.engine.build", tmp_path).stdout.split()


def python(code: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run `code`; the last line of stdout names every package that was loaded, however it ended."""
    names = "{name.partition('.')[0] for name in sys.modules}"
    report = f"import atexit, sys; atexit.register(lambda: print(*{names}))"
    return subprocess.run(
        [sys.executable, "-c", f"{report}\n{code}"],
        cwd=cwd,
        env=environment(cwd),
        capture_output=True,
        text=True,
        timeout=60,
    )


def commands(group: typer.main.TyperGroup, path: str) -> Iterator[tuple[str, object]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")


COMMANDS = dict(commands(typer.main.get_command(app), "headway"))


def test_every_command_of_the_design_is_there() -> None:
    expected = {"demo", "serve", "generate", "chat", "plan", "bench"}
    expected |= {
        f"bench {name}"
        for name in ("latency", "throughput", "tp", "attention", "kernels", "all-reduce", "idle")
    }
    assert {name.removeprefix("headway ") for name in COMMANDS} == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_explains_itself(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


def test_help_shows_every_option(tmp_path: Path) -> None:
    shown = run("serve", "--help", cwd=tmp_path)
    assert shown.code == 0
    for parameter in COMMANDS["headway serve"].params:
        assert parameter.opts[0] in shown.out


def test_a_mistyped_command_or_option_is_named(tmp_path: Path) -> None:
    for words, wrong in (("sevre", "sevre"), ("plan demo --tpp 2", "--tpp"), ("serve", "model")):
        ran = run(*words.split(), cwd=tmp_path)
        assert ran.code == 2
        assert wrong in ran.err


LINE = "ROMEO:\nBut, soft! what light through yonder window breaks?\n"


def test_generate_runs_a_model_in_its_own_process(tmp_path: Path) -> None:
    words = ("generate", LINE, "--model", str(resolve("demo")), "--temperature=0", "--max-tokens=12")
    ran = run(*words, "--json", cwd=tmp_path)
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)
    told = json.loads(ran.out)
    assert (told["prompt"], told["finish_reason"], len(told["token_ids"])) == (LINE, "length", 12)
    assert run(*words, cwd=tmp_path).out == told["text"] + "\n"


def test_chat_without_a_template_says_that_the_model_has_none(tmp_path: Path) -> None:
    for file in resolve("demo").iterdir():
        if file.suffix in (".json", ".safetensors") and file.name != "tokenizer_config.json":
            (tmp_path / file.name).symlink_to(file)
    ran = run("chat", "--model", ".", cwd=tmp_path, stdin="Who goes there?\n")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "headway: messages must be left out, as model . has no chat template, got 1\n"
