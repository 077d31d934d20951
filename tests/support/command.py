"""The `headway` command as a user runs it: a process of its own, in a folder of its own."""

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

WRONG = 2  # exit codes: the configuration, the model or the request
CANNOT_START = 1

COLOURING = {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"}  # even what goes into a pipe
UNWANTED = {"HEADWAY_TOKEN", *COLOURING}
TIMEOUT_S = 120  # of a command: ample, so that a busy machine decides no test
SET_CHILD_SUBREAPER = 36  # of prctl(2): orphans among a process's descendants become its children


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a command ended. left: the names of processes that it started and that outlived it."""

    code: int
    out: str
    err: str
    left: tuple[str, ...] = ()


def argv(*words: str) -> list[str]:
    """With this interpreter, and without assertions if it runs without."""
    return [sys.executable, *["-O"] * sys.flags.optimize, "-m", "headway.cli.main", *words]


def environment(cwd: Path) -> dict[str, str]:
    """This process's, less what would change a command; no hub, and a cache that is empty."""
    roots = dict.fromkeys(_root(package) for package in ("headway", "headway_kernels"))
    own = {"PYTHONPATH": os.pathsep.join(roots), "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / ".hub")}
    return {name: value for name, value in os.environ.items() if name not in UNWANTED} | own


def _root(package: str) -> str:
    """The folder that a package is imported from."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(package)
    return str(Path(spec.origin).parents[1])


def run(*words: str, cwd: Path, stdin: str = "") -> Ran:
    """The command to its end."""
    done = subprocess.run(
        argv(*words),
        cwd=cwd,
        env=environment(cwd),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return Ran(code=done.returncode, out=done.stdout, err=done.stderr)


def run_watched(*words: str, cwd: Path) -> Ran:
    """`run` below a process that adopts orphans, so that whatever is left is seen."""
    return watched(argv(*words), cwd=cwd)


def watched(command: list[str], *, cwd: Path) -> Ran:
    watcher = [sys.executable, str(Path(__file__)), *command]
    done = subprocess.run(
        watcher, cwd=cwd, env=environment(cwd), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    code, *left = done.stdout.splitlines()[-1].split()
    return Ran(code=int(code), out=done.stdout, err=done.stderr, left=tuple(left))


def check_refused(cwd: Path, code: int, message: str, *words: str) -> None:
    """The command ends with `code` and one line that has `message` in it, and leaves nothing behind.

    No assert, since this file's are not rewritten by pytest: it must hold without assertions, too.
    """
    ran = run_watched(*words, cwd=cwd)
    one_line = ran.err.startswith("headway: ") and ran.err.count("\n") == 1 and message in ran.err
    if not one_line or ran.code != code or ran.left:
        raise AssertionError(f"expected exit code {code} and one line with {message!r}, got {ran}")


def _watch(words: list[str]) -> None:
    """Run `words`; then write its exit code and the names of those left, as the last line of stdout."""
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    code = subprocess.run(words, stdin=subprocess.DEVNULL).returncode
    left = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=1)[1]
    print(code, *(process.name() for process in left), flush=True)
    for process in left:
        process.kill()


if __name__ == "__main__":
    _watch(sys.argv[1:])
