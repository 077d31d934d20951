"""What holds for all kernels, whatever they compute: names, what a launch says, and addresses that stay."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import headway_kernels
from headway_kernels.launch import bounds_tensor

SOURCES = sorted(Path(headway_kernels.__file__).parent.glob("*.py"))


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def test_no_two_kernels_share_a_name_so_that_a_profile_tells_them_apart() -> None:
    names = Counter(
        node.name
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    )
    assert len(names) > 20
    assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_launch_says_whether_a_product_and_a_sum_are_rounded_once(path: Path) -> None:
    """Triton 3.9 warns where a launch leaves it to the default, which 3.10 changes."""
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            unpacked = {ast.unparse(one.value) for one in node.keywords if one.arg is None}
            said = any(name in {"FUSED", "EXACT", "parts"} or "_options(" in name for name in unpacked)
            assert said, f"{path.name}:{node.lineno} must pass **FUSED or **EXACT"


def test_bounds_on_the_device_are_never_dropped() -> None:
    """Captured graphs hold their addresses: more bounds than any cache of a fixed size may be in use."""
    device = torch.device("cpu")
    first = bounds_tensor((0, 1), device)
    for heads in range(2, 300):
        bounds_tensor((0, heads), device)
    assert bounds_tensor((0, 1), device) is first
