"""The example of the package's README runs, and its two modules agree."""

import re
import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

README = Path(__file__).parents[2] / "kernels" / "README.md"


def run(folder: Path, *changes: tuple[str, str]) -> torch.Tensor:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    for old, new in (('"cuda"', '"cpu"'), ("bfloat16", "float16"), *changes):
        assert old in code
        code = code.replace(old, new)
    file = folder / "example.py"
    file.write_text(code)
    torch.manual_seed(0)
    out = runpy.run_path(str(file))["out"]
    assert isinstance(out, torch.Tensor)
    return out


def test_the_example_gives_the_same_on_either_module(tmp_path: Path) -> None:
    expected = run(tmp_path, ("import gpu as ops", "import reference as ops"))
    torch.testing.assert_close(run(tmp_path), expected, atol=2e-3, rtol=2e-3)
