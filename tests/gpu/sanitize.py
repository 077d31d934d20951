"""Every attention launch at small sizes, to be watched by NVIDIA's compute-sanitizer:

    compute-sanitizer --tool memcheck python tests/gpu/sanitize.py
    compute-sanitizer --tool racecheck python tests/gpu/sanitize.py

Each kernel has a case, and each option one alone and one beside all others; what is computed is checked as
in the tests. Run it once without the sanitizer, so that the kernels are compiled. More arguments: the device,
and a part of the names of the cases to run. `TRITON_INTERPRET=1 python tests/gpu/sanitize.py cpu` shows
without a GPU that the cases themselves hold.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parents[1]
CHUNKS = [(5, 5), (1, 40), (0, 33), (33, 200)]  # new tokens, and tokens with them
PROMPTS = [(600, 600), (70, 70)]  # several tiles of rows and of positions
PAIRS = [(5, 5), (1, 40), (3, 0), (33, 200)]  # queries and keys
LENGTHS = [1, 40, 0, 16, 200]


def main(device: str = "cuda", part: str = "") -> None:
    # Memcheck knows no bounds but those of cudaMalloc: each tensor needs one of its own.
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    sys.path[:0] = [str(TESTS / "support"), str(TESTS.parent / "kernels")]
    from attention_cases import HEADS, VARIANTS
    from attention_checks import check_decode, check_prefill, check_prefill_dense
    from headway_kernels import gpu
    from headway_kernels.tiles import Tiles

    torch.manual_seed(0)
    alike = {"tile": Tiles(rows=64, positions=64, num_warps=4, num_stages=2)}  # the plain kernels
    kind: dict[str, Any] = {"device": device, "dtype": torch.float16}  # bfloat16 launches the same
    ragged, many = HEADS["ragged"], HEADS["MQA, more heads than a tile has rows"]
    prefill = partial(check_prefill, gpu.flash_prefill, **kind)
    dense = partial(check_prefill_dense, gpu.flash_prefill_dense, **kind)
    decode = partial(check_decode, gpu.paged_decode, gpu.plan_decode, **kind)
    cases: dict[str, Callable[[], None]] = {
        **{f"prefill, {variant}": partial(prefill, CHUNKS, ragged, variant) for variant in VARIANTS},
        "prefill, bidirectional": partial(prefill, CHUNKS, ragged, "all of them", causal=False),
        "prefill, larger pages": partial(prefill, CHUNKS, ragged, "all of them", page_size=64),
        "prefill, two groups": partial(prefill, PROMPTS, ragged, "window", head_dim=128),
        "prefill, all warps alike": partial(prefill, CHUNKS, ragged, "all of them", **alike),
        "dense": partial(dense, PAIRS, ragged),
        "dense, bidirectional": partial(dense, PAIRS, ragged, "all of them", head_dim=192, causal=False),
        "dense, all warps alike": partial(dense, PAIRS, ragged, "all of them", causal=False, **alike),
        "decode, several sequences a program": partial(decode, LENGTHS, ragged, num_programs=3),
        "decode, a tile a program": partial(decode, LENGTHS, ragged, "all of them"),
        "decode, four queries": partial(decode, LENGTHS, ragged, "all of them", num_queries=4),
        "decode, two blocks of rows": partial(decode, LENGTHS, many, num_queries=2),
        "decode, all warps alike": partial(decode, LENGTHS, ragged, "all of them", num_queries=4, **alike),
        "merge": partial(check_merge, device),
    }
    for name, check in cases.items():
        if part in name:
            print(name, flush=True)
            check()
    print("done")


def check_merge(device: str) -> None:
    from headway_kernels import gpu, reference

    parts, lse = torch.randn(19, 3, 7, 80, device=device), torch.randn(19, 3, 7, device=device)
    lse[:, 0, 0] = lse[3] = -torch.inf
    parts[lse == -torch.inf] = torch.nan
    torch.testing.assert_close(gpu.merge(parts, lse), reference.merge(parts, lse), atol=1e-5, rtol=1e-5)


if __name__ == "__main__":
    main(*sys.argv[1:])
