"""`headway generate` and `headway chat` against a server."""

import io
import json
from dataclasses import replace

import pytest

from fake_engine import MODEL, FakeEngine, expected, served


def test_the_commands_generate_and_chat_with_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from headway.cli.main import main

    def headway(*words: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["headway", *words])
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return (code, *capsys.readouterr())

    with served(FakeEngine(), token="s3cret") as address:
        to = ("--target", address, "--token", "s3cret")
        assert headway("generate", "x", *to, "--max-tokens=3", "--seed=1") == (0, expected(1, 3) + "\n", "")
        code, out, _ = headway("generate", "x", *to, "--max-tokens=3", "--seed=1", "--json")
        assert (code, json.loads(out)["text"]) == (0, expected(1, 3))
        monkeypatch.setenv("HEADWAY_TOKEN", "s3cret")
        code, out, err = headway("chat", *to[:2], "--max-tokens=2", stdin="hi\n\nho\n")
        assert (code, err, [len(line) for line in out.splitlines()]) == (0, "", [2, 2])
        code, out, err = headway("generate", "x", "--target", address, "--token", "wrong")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("headway: the token is missing or wrong")
        code, _, err = headway("generate", "x", "--target", address, "--temperature=-1")
        assert (code, err.count("\n")) == (2, 1)
        code, _, err = headway("generate", "x", "--target", address, "--model", "demo")
        assert (code, err) == (2, "headway: give either --target or --model, not both\n")
    with served(FakeEngine(), model=replace(MODEL, template=None)) as address:
        code, _, err = headway("chat", "--target", address, stdin="hi\n")
        assert code == 2
        assert "model bytes has no chat template" in err
