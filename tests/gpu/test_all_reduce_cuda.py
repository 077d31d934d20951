"""All-reduce through peers' memory of several GPUs, a process each, which are ended if they take too long."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu
SCRIPT = Path(__file__).with_name("peer_rank_cuda.py")
LIMIT_S = 180.0


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_gpus_get_the_same_sums_and_norms_call_after_call_and_in_graphs(
    world_size: int, tmp_path: Path
) -> None:
    if torch.cuda.device_count() < world_size:
        pytest.skip(f"needs {world_size} GPUs, found {torch.cuda.device_count()}")
    logs = [(tmp_path / f"{rank}.log").open("w+") for rank in range(world_size)]
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(world_size), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=log,
            stderr=log,
        )
        for rank, log in enumerate(logs)
    ]
    deadline = time.monotonic() + LIMIT_S
    try:
        while time.monotonic() < deadline:
            codes = [process.poll() for process in started]
            if all(code is not None for code in codes) or any(codes):
                break
            time.sleep(0.1)
    finally:
        for process in started:
            process.kill()
            process.wait()
    texts = []
    for log in logs:
        log.seek(0)
        texts.append(log.read())
        log.close()
    last = [
        next((line for line in text.splitlines() if line.startswith(("done", "skip"))), "") for text in texts
    ]
    if all(line.startswith("skip") for line in last):
        pytest.skip(last[0])
    assert all(line.startswith("done") for line in last), "\n\n".join(texts)
    assert len(set(last)) == 1, "ranks differ"
