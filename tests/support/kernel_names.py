"""The kernels of the package, by the names that a profile shows."""

import ast
from pathlib import Path

import headway_kernels


def kernel_names() -> list[str]:
    """Of every function `..._kernel` in every file of the package, as often as there is one."""
    return [
        node.name
        for path in sorted(Path(headway_kernels.__file__).parent.glob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    ]
