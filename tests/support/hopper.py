"""Compile for a GPU what launches would run there, on a machine without one; nothing is executed.

`python hopper.py [PART OF A NAME] [80 | 89 | 90 | 100 | 120]` prints a JSON line a launch: each kernel's
programs, threads, registers and stack bytes (spills) of a thread, and shared memory, or the error.
TRITON_INTERPRET must not be set.
"""

import json
import re
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from headway_kernels import launch
from launches import all_launches

HOPPER = GPUTarget("cuda", 90, 32)
MULTIPROCESSORS = 132


class AbsentGpu:
    """As much of Triton's driver as compiling takes."""

    def __init__(self, target: GPUTarget = HOPPER) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def usage(kernel: Any, grid: tuple[int, ...]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])
        words = (knobs.nvidia.cuobjdump.path, "-res-usage", file)
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", told))
    return {
        "kernel": kernel.metadata.name,
        "programs": prod(grid),
        "threads": 32 * kernel.metadata.num_warps,
        "registers": int(found["REG"]),
        "stack": int(found["STACK"]) + int(found["LOCAL"]),
        "shared": kernel.metadata.shared,
    }


def main(part: str = "", capability: str = "90") -> None:
    driver.set_active(AbsentGpu(GPUTarget("cuda", int(capability), 32)))
    compiled: list[tuple[Any, tuple[int, ...]]] = []
    run = JITFunction.run

    def only_compile(self: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        compiled.append((kernel, grid))
        return kernel

    JITFunction.run = only_compile
    launch.num_multiprocessors = lambda device: MULTIPROCESSORS
    launch.capability = lambda device: divmod(int(capability), 10)
    for name, make in all_launches().items():
        if part not in name:
            continue
        compiled.clear()
        try:
            torch.manual_seed(0)
            make("cpu")()
            told: dict[str, Any] = {"kernels": [usage(*one) for one in compiled]}
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"launch": name, **told}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
