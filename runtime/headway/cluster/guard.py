"""Ends what a process that is killed leaves behind.

When Ray's own cluster loses the process that started it, most of it ends at once, but the raylet's agents
go on for a minute (they try to report the raylet's death to a cluster that is gone). A guard is a small
process whose standard input only its owner holds open: the end of it, however it comes, means that the
owner is gone, and so must be the processes that it named.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterable

import psutil

CLOSE_TIMEOUT_S = 5.0


class Guard:
    """Watches over processes that must not outlive this one."""

    def __init__(self, pids: Iterable[int]) -> None:
        # A session of its own: Ctrl-C in a terminal is for the owner. -P: nothing is imported from the cwd.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, *map(str, pids)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def close(self) -> None:
        """End what is left of them. Safe to call twice."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(CLOSE_TIMEOUT_S)


def watch(pids: Iterable[int]) -> None:
    """Wait for the end of standard input, then kill `pids` where they still are the same processes."""
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    sys.stdin.buffer.read()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


if __name__ == "__main__":
    watch(map(int, sys.argv[1:]))
