"""A signal ends a server cleanly whenever it comes: while it starts, and again while it stops."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from command import argv, environment

LAST = "Stopped; nothing is left running"


def begin(cwd: Path) -> "subprocess.Popen[str]":
    words = ("serve", "demo", "--tp=2", "--device=cpu", "--grpc=127.0.0.1:0")
    return subprocess.Popen(
        argv(*words),
        cwd=cwd,
        env=environment(cwd),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGTERM, 1.0), (signal.SIGTERM, 4.0), (signal.SIGINT, 5.0)]
)
def test_a_signal_while_it_starts(number: int, seconds: float, tmp_path: Path) -> None:
    process = begin(tmp_path)
    time.sleep(seconds)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert "Traceback" not in said
    assert "***" not in said, "what C++ says of a signal"
    if process.returncode:  # Ray's own handlers, while it starts
        assert said.startswith("headway: ray cannot be started: told to stop")
    else:
        assert said.splitlines()[-1] == LAST


def test_a_second_signal_changes_nothing(tmp_path: Path) -> None:
    process = begin(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Serving"):
            break
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    said = process.communicate(timeout=60)[0]
    assert (process.returncode, said.splitlines()[-1]) == (0, LAST)
