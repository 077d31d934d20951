"""A model is looked for once, before Ray; whatever is started then has the files that were found."""

import shutil
from pathlib import Path
from typing import Any, Self

import huggingface_hub
import pytest

from headway import LLM
from headway.cluster import gang, session
from headway.cluster.preflight import preflight
from headway.core.config import EngineConfig
from headway.core.errors import ModelError, StartError
from headway.model.folder import resolve

OLD, NEW = "0a" * 20, "1b" * 20  # commits
REMOTE = "10.0.0.1:6379"


class Hub:
    """Has owner/name, the bundled model, in two commits; `main` is the one that is its state now."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.main = OLD
        self.num_calls = 0
        self._snapshots = cache / "models--owner--name" / "snapshots"
        for commit in (OLD, NEW):
            (self._snapshots / commit).mkdir(parents=True)
            for file in resolve("demo").glob("*.[js]*"):
                (self._snapshots / commit / file.name).symlink_to(file)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def model_info(self, name: str, *, revision: str | None, timeout: float) -> None:
        self.num_calls += 1

    def download(self, name: str, *, revision: str | None, **options: Any) -> str:
        assert name == "owner/name"
        return str(self._snapshots / (revision or self.main))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path, monkeypatch)


def test_ranks_on_other_hosts_get_the_commit_that_was_found_here(hub: Hub) -> None:
    for model in ("owner/name", f"owner/name@{OLD}"):
        hub.main = OLD
        found = preflight(model, EngineConfig(), ray=REMOTE)
        hub.main = NEW
        assert found.folder.name == OLD
        assert found.source == f"owner/name@{OLD}"
        assert resolve(found.source) == found.folder
    assert resolve("owner/name").name == NEW


def test_ranks_on_this_host_get_the_folder_and_do_not_ask_the_hub_again(hub: Hub) -> None:
    found = preflight("owner/name", EngineConfig())
    assert resolve(found.source) == found.folder
    assert hub.num_calls == 1


def test_folders_stay_folders_and_demo_is_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(resolve("demo").parent)
    assert preflight("demo", EngineConfig(), ray=REMOTE).source == "demo"
    monkeypatch.chdir(resolve("demo"))
    for folder in (".", str(resolve("demo"))):
        assert preflight(folder, EngineConfig(), ray=REMOTE).source == folder


class NoRay:
    """Stands in for a RaySession."""

    num_made = 0

    def __init__(self, address: str, *, num_ranks: int) -> None:
        NoRay.num_made += 1
        self.ray = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        pass


class NoGang:
    """Stands in for a Gang: tells which model it was given, and does not start."""

    def __init__(self, session: NoRay, model: str, config: EngineConfig) -> None:
        self._model = model

    def load(self, report: object) -> None:
        raise StartError(f"started with {self._model}")

    start = load

    def stop(self) -> None:
        pass


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> type[NoRay]:
    from headway.cli import deployment

    for module in (gang, deployment):
        monkeypatch.setattr(module, "Gang", NoGang)
    monkeypatch.setattr(session, "RaySession", NoRay)
    monkeypatch.setattr(NoRay, "num_made", 0)
    return NoRay


def headway(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    from headway.cli.main import main

    monkeypatch.setattr("sys.argv", ["headway", *words])
    with pytest.raises(SystemExit):
        main()


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("words", ["serve owner/name --grpc 127.0.0.1:0", "demo --model owner/name"])
def test_what_a_command_starts_has_the_commit_that_was_found(
    words: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headway(monkeypatch, *words.split(), "--ray", REMOTE)
    assert capsys.readouterr().err == f"headway: started with owner/name@{OLD}\n"
    assert hub.num_calls == 1


@pytest.mark.usefixtures("no_ray")
def test_what_an_llm_starts_has_the_commit_that_was_found(hub: Hub) -> None:
    with pytest.raises(StartError, match=f"started with owner/name@{OLD}"):
        LLM("owner/name", tp=2, ray=REMOTE)
    assert hub.num_calls == 1


BROKEN = {
    "tokenizer.json": "broken/tokenizer.json cannot be read: ",
    "tokenizer_config.json": "broken/tokenizer_config.json is no JSON: ",
    "chat_template.jinja": "broken: the chat template cannot be parsed: ",
}


@pytest.mark.parametrize("file", BROKEN)
def test_a_broken_tokenizer_or_template_is_found_before_ray_is_started(
    file: str,
    tmp_path: Path,
    no_ray: type[NoRay],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resolve("demo"), tmp_path / "broken")
    (tmp_path / "broken" / file).write_text("{% if")
    for words in ("serve", "demo --model"):
        headway(monkeypatch, *words.split(), "broken")
        assert capsys.readouterr().err.startswith(f"headway: {BROKEN[file]}")
    with pytest.raises(ModelError, match=BROKEN[file]):
        LLM("broken", tp=2)
    assert no_ray.num_made == 0
