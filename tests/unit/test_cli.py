"""The commands without a server: what they import, what they say of themselves, text from a model here."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import headway
from command import environment, run
from headway import LLM, SamplingParams
from headway.cli.main import app, main
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


MISTYPED = {
    "sevre": "no such command 'sevre'",
    "bench sevre": "no such command 'sevre'",
    "plan demo --tpp 2": "no such option: --tpp",
    "serve": "missing argument 'model'",
    "serve demo --tls-cert": "option '--tls-cert' requires an argument",
    "serve demo --replicas 0": "invalid value for '--replicas': .*'?0'?",
    "serve demo --tp abc": "invalid value for '--tp': .*'abc'",
    "bench throughput --streams 1 --streams=x": "invalid value for '--streams': .*'x'",
}


@pytest.mark.parametrize("words", MISTYPED)
def test_a_mistyped_command_line_is_one_line_that_names_option_and_value(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["headway", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert re.match(f"headway: {MISTYPED[words]}", err, re.IGNORECASE)
    assert (out, err.count("\n")) == ("", 1)


def test_without_a_command_there_is_help(tmp_path: Path) -> None:
    for words in ((), ("bench",)):
        ran = run(*words, cwd=tmp_path)
        assert (ran.code, "Usage: headway" in ran.out + ran.err) == (2, True)


def test_the_command_and_the_package_know_their_version(tmp_path: Path) -> None:
    ran = run("--version", cwd=tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, f"headway {headway.__version__}\n", "")


def test_what_is_told_in_passing_says_whose_line_it_is(tmp_path: Path) -> None:
    warn = "logging.getLogger('headway.serving.router').warning('lost a replica: %s', 'rank 1 died')"
    call = "sys.argv = ['headway', '--version']; from headway.cli.main import main"
    code = f"import atexit, logging, sys; {call}; atexit.register(lambda: {warn}); main()"
    assert python(code, tmp_path).stderr == "headway: lost a replica: rank 1 died\n"


LINE = "ROMEO:\nBut, soft! what light through yonder window breaks?\n"


def test_generate_runs_a_model_in_its_own_process(tmp_path: Path) -> None:
    words = ("generate", LINE, "--model", str(resolve("demo")), "--temperature=0", "--max-tokens=12")
    ran = run(*words, "--json", cwd=tmp_path)
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)
    told = json.loads(ran.out)
    assert (told["prompt"], told["finish_reason"], len(told["token_ids"])) == (LINE, "length", 12)
    assert run(*words, cwd=tmp_path).out == told["text"] + "\n"


def test_generate_takes_every_parameter_but_ids(tmp_path: Path) -> None:
    words = ("--n=2", "--logprobs=1", "--min-tokens=12", "--ignore-eos", "--json")
    words += ("--repetition-penalty=1.3", "--presence-penalty=2", "--frequency-penalty=2")
    here = ("--model", "demo", "--device", "cpu", "--dtype", "float32", "--seed=3", "--max-tokens=12")
    ran = run("generate", LINE, *here, *words, cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert [(one["index"], len(one["token_ids"])) for one in told] == [(0, 12), (1, 12)]
    assert all(len(entry) == 2 for one in told for entry in one["logprobs"])
    params = SamplingParams(
        n=2,
        seed=3,
        max_tokens=12,
        min_tokens=12,
        logprobs=1,
        ignore_eos=True,
        repetition_penalty=1.3,
        presence_penalty=2,
        frequency_penalty=2,
    )
    with LLM("demo", device="cpu", dtype="float32") as llm:
        assert [one["text"] for one in told] == [done.text for done in llm.generate(LINE, params)]


def test_chat_without_a_template_says_that_the_model_has_none(tmp_path: Path) -> None:
    for file in resolve("demo").iterdir():
        if file.suffix in (".json", ".safetensors") and file.name != "tokenizer_config.json":
            (tmp_path / file.name).symlink_to(file)
    ran = run("chat", "--model", ".", cwd=tmp_path, stdin="Who goes there?\n")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "headway: messages must be left out, as model . has no chat template, got 1\n"


def test_a_chat_longer_than_the_context_goes_on_without_its_oldest_turns(tmp_path: Path) -> None:
    lines = "".join(f"{n} " + "Who goes there? " * 60 + "\n" for n in range(5))
    ran = run("chat", "--model=demo", "--max-tokens=8", "--stop=~", cwd=tmp_path, stdin=lines)
    assert ran.code == 0
    assert set(ran.err.splitlines()) == {
        "headway: the conversation is longer than the context; its oldest turn is left out"
    }
