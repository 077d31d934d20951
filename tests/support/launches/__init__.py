"""A launch of every kernel at a size that is used, by name: `make(device)` returns what launches it.

They are compiled for GPUs where there is none (`kernels/test_compiled.py`), and captured where there is one
(`gpu/test_graphs.py`). A file an operation; each has `LAUNCHES`.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

Launch = Callable[[], Any]
Make = Callable[[str], Launch]


def all_launches() -> dict[str, Make]:
    """Every launch of the files beside this one, as "operation: shape"."""
    files = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem != "__init__")
    return {
        f"{file}: {name}": make
        for file in files
        for name, make in import_module(f"launches.{file}").LAUNCHES.items()
    }
