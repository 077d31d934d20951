"""Every kernel compiles for GPUs, in registers and shared memory that they have: no GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from hopper import MULTIPROCESSORS
from kernel_names import kernel_names
from launches import all_launches

SUPPORT = Path(__file__).parents[1] / "support"
# Bytes a block, by compute capability.
MOST_SHARED = {"80": 163 << 10, "89": 99 << 10, "90": 227 << 10, "100": 227 << 10, "120": 99 << 10}
RESERVED = 1 << 10  # of a multiprocessor's shared memory, for each block
MOST_REGISTERS = 64 << 10  # of a multiprocessor
MOST_STACK = (
    320  # bytes a thread, which Triton 3.9 needs where 3.6 needs 16; float32 takes registers without end
)
# Kernels whose programs are as many as all multiprocessors are to hold at once.
AT_ONCE = {"_decode_kernel", "_hopper_decode_kernel", "_hopper_prefill_kernel"}


@pytest.fixture(
    scope="module",
    params=["90", *(pytest.param(other, marks=pytest.mark.full) for other in ("80", "89", "100", "120"))],
)
def capability(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def compiled(capability: str) -> dict[str, Any]:
    """What `hopper.py` says of each launch. A process of its own: here kernels are interpreted.

    Triton warns where a launch leaves to its default what that is about to change: an error here.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = (sys.executable, "-W", "error", SUPPORT / "hopper.py", "", capability)
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    assert told, ran.stderr
    return {one["launch"]: one for one in told}


@pytest.mark.parametrize("name", all_launches())
def test_it_compiles_within_what_a_gpu_has(compiled: dict[str, Any], capability: str, name: str) -> None:
    told = compiled[name]
    assert "error" not in told, told["error"]
    assert told["kernels"], "nothing was launched"
    for kernel in told["kernels"]:
        assert kernel["stack"] <= MOST_STACK or "float32" in name, kernel
        assert kernel["shared"] <= MOST_SHARED[capability], kernel


def test_a_multiprocessor_holds_as_many_programs_as_a_plan_says(
    compiled: dict[str, Any], capability: str
) -> None:
    """In shared memory and in registers. Where the plain kernel takes over a plan by roles, for a pool that
    the copy engine does not take, it has more warps than planned, and registers for one program alone.
    """
    several = set()
    for name, told in compiled.items():
        for kernel in told["kernels"]:
            if kernel["kernel"] not in AT_ONCE:
                continue
            programs = -(-kernel["programs"] // MULTIPROCESSORS)
            shared = programs * (kernel["shared"] + RESERVED)
            assert shared <= MOST_SHARED[capability] + RESERVED, (name, kernel)
            if kernel["kernel"] == "_decode_kernel" and capability == "90" and "float32" not in name:
                continue
            registers = programs * kernel["threads"] * -(-kernel["registers"] // 8) * 8
            assert registers <= MOST_REGISTERS, (name, kernel)
            if programs > 1:
                several.add(kernel["kernel"])
    assert several == {"_decode_kernel"} | ({"_hopper_decode_kernel"} if capability == "90" else set())


def test_every_kernel_is_launched(compiled: dict[str, Any], capability: str) -> None:
    launched = {kernel["kernel"] for told in compiled.values() for kernel in told["kernels"]}
    absent = set() if capability == "90" else {"_hopper_prefill_kernel", "_hopper_decode_kernel"}
    assert launched == set(kernel_names()) - absent
