"""The committed gRPC code is what the .proto files give."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_code_equals_a_fresh_run(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "proto" / "generate.py", tmp_path], check=True)
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py*")}
    assert len(fresh) == 9
    for name, text in fresh.items():
        assert (ROOT / "runtime" / name).read_text() == text, f"{name} is stale: run `make proto`"
