"""Rules that hold for every file of the package, read from its syntax trees; each is shown to fire."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("runtime/headway", "kernels/headway_kernels")
GENERATED = "runtime/headway/rpc/"
ENVIRONMENT = "runtime/headway/core/env.py"
MAX_LINES = 400

# Whatever can run code that it finds in data. The *_object* collectives of torch pickle.
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    "torch.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "builtins.eval",
    "builtins.exec",
    "torch.distributed.all_gather_object",
    "torch.distributed.gather_object",
    "torch.distributed.scatter_object_list",
    "torch.distributed.broadcast_object_list",
    "torch.distributed.send_object_list",
    "torch.distributed.recv_object_list",
}
ENVIRON = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv"}


def names(tree: ast.Module) -> Iterator[str]:
    """Full dotted names of everything imported or read through an import, and bare names of the rest."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                aliases[alias.asname or first] = alias.name if alias.asname else first
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            yield ".".join([aliases.get(first, first), *rest])


def runs_data(path: str, tree: ast.Module, text: str) -> bool:
    forbidden = ATTRIBUTES | BUILTINS
    return any(name in forbidden or not MODULES.isdisjoint(name.split(".")) for name in names(tree))


def reads_environment(path: str, tree: ast.Module, text: str) -> bool:
    return path != ENVIRONMENT and not ENVIRON.isdisjoint(names(tree))


def too_long(path: str, tree: ast.Module, text: str) -> bool:
    return not path.startswith(GENERATED) and len(text.splitlines()) > MAX_LINES


def undocumented(path: str, tree: ast.Module, text: str) -> bool:
    return not path.startswith(GENERATED) and bool(tree.body) and not ast.get_docstring(tree)


Rule = Callable[[str, ast.Module, str], bool]
RULES: list[Rule] = [runs_data, reads_environment, too_long, undocumented]

BAD: list[tuple[Rule, str]] = [
    (runs_data, "import pickle"),
    (runs_data, "from ray import cloudpickle as cp"),
    (runs_data, "from marshal import loads"),
    (runs_data, "import ray\nray.cloudpickle.loads(b'')"),
    (runs_data, "eval('1')"),
    (runs_data, "run = exec\nrun('1')"),
    (runs_data, "def f():\n    import torch as t\n    return t.load('x')"),
    (runs_data, "from torch import load as read\nread('x')"),
    (runs_data, "import yaml\nyaml.load('x', Loader=yaml.Loader)"),
    (runs_data, "import torch.distributed as dist\ndist.broadcast_object_list([])"),
    (reads_environment, "import os\nprint(os.environ['HOME'])"),
    (reads_environment, "import os as system\nsystem.environ.get('HOME')"),
    (reads_environment, "from os import environ"),
    (reads_environment, "from os import getenv as g"),
    (too_long, '"""Long."""\n' + "x = 1\n" * MAX_LINES),
    (undocumented, "x = 1"),
]

GOOD = [
    '"""Documented."""\nimport re, os\nimport torch\nre.compile("x")\nos.getpid()\nmodel.eval()\ntorch.loads',
    '"""Documented."""\nfrom headway.core import env\nfrom os import path\nenv.token()\nloader.load()',
    "",
]


def find(path: str, text: str) -> set[Rule]:
    tree = ast.parse(text)
    return {rule for rule in RULES if rule(path, tree, text)}


def sources() -> list[str]:
    files = (file for source in SOURCES for file in (ROOT / source).rglob("*.py"))
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


def test_the_sources_are_found() -> None:
    assert {ENVIRONMENT, "kernels/headway_kernels/__init__.py"} <= set(sources())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_file_of_the_package_breaks_the_rule(rule: Rule) -> None:
    assert [path for path in sources() if rule in find(path, (ROOT / path).read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(("rule", "text"), BAD)
def test_the_rule_fires_on_a_planted_offence(rule: Rule, text: str) -> None:
    assert rule in find("runtime/headway/worker/planted.py", text)


@pytest.mark.parametrize("text", GOOD)
def test_the_rules_let_harmless_code_pass(text: str) -> None:
    assert find("runtime/headway/worker/planted.py", text) == set()


def test_generated_code_and_the_environment_module_are_exempt_where_they_must_be() -> None:
    assert find(GENERATED + "v1/planted_pb2.py", "x = 1\n" * 1000) == set()
    assert find(GENERATED + "v1/planted_pb2.py", "import pickle") == {runs_data}
    assert find(ENVIRONMENT, '"""Reads."""\nimport os\nos.environ') == set()


FOLDERS_IN_THE_MAP = ("model/families", "bench/ops", "headway/demo")  # as a whole: a file more is no news


def missing_from(map_text: str) -> list[str]:
    """Files of the package that the map does not name in backticks."""
    files = (file for source in SOURCES for file in (ROOT / source).rglob("*.py"))
    named = [file for file in files if not file.stem.startswith("__") and GENERATED not in file.as_posix()]
    return [
        file.name
        for file in named
        if f"`{file.name}`" not in map_text
        and not any(file.parent.as_posix().endswith(folder) for folder in FOLDERS_IN_THE_MAP)
    ]


def test_the_map_names_every_file() -> None:
    map_text = (ROOT / "runtime" / "README.md").read_text()
    assert missing_from(map_text) == []
    assert missing_from(map_text.replace("`gemv.py`", "")) == ["gemv.py"]
