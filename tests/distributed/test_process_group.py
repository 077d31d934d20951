"""Collectives between real processes, over gloo on loopback."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from headway.core.errors import StartError
from headway.model.process_group import ProcessGroupCollectives, host_store, join_store

HOST = "127.0.0.1"
SCRIPT = Path(__file__).with_name("rank.py")
Rank = subprocess.Popen[str]


@contextmanager
def ranks(world_size: int) -> Iterator[list[Rank]]:
    """A process each, warnings as errors; they end when the block does."""
    started: list[Rank] = []
    try:
        for rank in range(world_size):
            command = [sys.executable, "-W", "error", str(SCRIPT), str(rank), str(world_size)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, **pipes))
        port = answer(started[0])
        for process in started[1:]:
            ask(process, port)
        yield started
    finally:
        for process in started:
            process.communicate(timeout=30)


def ask(process: Rank, question: object) -> None:
    assert process.stdin is not None
    print(question, file=process.stdin, flush=True)


def answer(process: Rank) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def check_sum_and_gather(processes: list[Rank]) -> None:
    for process in processes:
        ask(process, "sum_and_gather")
    row = [0.0] * 3 + [1.0] * 2 + [2.0] * 4
    for process in processes:
        result = answer(process)
        assert result["total"] == [[sum(10.0**rank for rank in range(len(processes)))] * 3] * 2
        assert result["gathered"] == [row[: (5, 9)[len(processes) - 2]]] * 2
        assert set(result["listening"]) <= {HOST}  # gloo and the store, and on loopback alone
        assert result["listening"]


def test_two_processes_sum_and_gather_uneven_parts_and_end_cleanly() -> None:
    with ranks(2) as processes:
        check_sum_and_gather(processes)
    assert [process.returncode for process in processes] == [0, 0]


def test_a_rank_that_leaves_is_an_error_on_the_other_at_once() -> None:
    with ranks(2) as processes:
        ask(processes[0], "leave")
        ask(processes[1], "wait_for_the_dead")
        assert answer(processes[0]) == "rank 0: all_reduce failed: this rank has left"
        text, seconds = answer(processes[1])
        assert text == "rank 1: all_reduce failed: another rank is gone"
        assert seconds < 10


def test_one_of_three_is_killed_and_the_others_hear_of_it_long_before_the_timeout() -> None:
    with ranks(3) as processes:
        check_sum_and_gather(processes)
        processes[1].kill()
        for rank in (0, 2):
            ask(processes[rank], "wait_for_the_dead")
        for rank in (0, 2):
            text, seconds = answer(processes[rank])
            assert text == f"rank {rank}: all_reduce failed: another rank is gone"
            assert seconds < 10  # of a timeout of 30; in practice at once
    assert [process.returncode for process in processes] == [0, -9, 0]


def test_a_rank_alone_gives_up_in_time() -> None:
    store, _ = host_store(HOST)
    device = torch.device("cpu")
    with pytest.raises(StartError, match=r"rank 0: the 2 ranks did not meet within 0\.2 s"):
        ProcessGroupCollectives(store, 0, 2, host=HOST, device=device, timeout_s=0.2)


def test_a_store_that_nobody_hosts_is_an_error_in_time() -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(StartError, match=rf"no rank 0 at 127\.0\.0\.1:{port} within 0\.5 s"):
        join_store(HOST, port, timeout_s=0.5)


def test_a_host_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1"):
        host_store("192.0.2.1")
