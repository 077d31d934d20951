"""Write the gRPC code of every .proto file here into the runtime: `make proto`.

    python proto/generate.py [FOLDER]    FOLDER instead of runtime/ (the tests compare the two)

Generated code refuses a protobuf runtime older than its generator, so grpcio-tools is pinned to the lowest
version that is supported.
"""

import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).resolve().parent


def generate(folder: Path) -> None:
    """Run protoc; raises CalledProcessError where a file is wrong."""
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, *sources]
    subprocess.run(command, check=True, cwd=PROTO)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO.parent / "runtime")
