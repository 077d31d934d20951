"""`kv_write` on a GPU: fresh inputs, poisoned pools, heads and rotations of real models.

The kernel is imported by the test: where there is no GPU, it runs in Triton's interpreter elsewhere.
"""

from typing import Any

import pytest
import torch

from kv_write_checks import check_kv_write

pytestmark = pytest.mark.gpu
MODELS: dict[str, tuple[tuple[int, int], int, dict[str, Any]]] = {
    "Llama 3.1 8B": ((32, 8), 128, {"rotated": 128}),
    "Llama 3.2 1B": ((32, 8), 64, {"rotated": 64}),
    "Falcon 7B": ((71, 1), 64, {"rotated": 64}),
    "Qwen3 8B": ((32, 8), 128, {"rotated": 128, "norm": torch.bfloat16}),
    "Gemma 3 4B": ((8, 4), 256, {"rotated": 256, "norm": torch.float32}),
    "GPT-NeoX 20B": ((64, 64), 96, {"rotated": 24}),
    "GPT-J 6B": ((16, 16), 256, {"rotated": 64, "interleaved": True}),
    "BLOOM 7B": ((32, 32), 128, {"rotated": None}),
    "Phi-2, interleaved and normed": (
        (32, 32),
        80,
        {"rotated": 32, "interleaved": True, "norm": torch.float32},
    ),
    "heads of 192, interleaved": ((5, 3), 192, {"rotated": 192, "interleaved": True}),
}


def check(*arguments: Any, **options: Any) -> None:
    from headway_kernels.gpu import kv_write

    torch.manual_seed(0)
    check_kv_write(kv_write, *arguments, **{"device": "cuda", "dtype": torch.bfloat16} | options)


@pytest.mark.parametrize("num_tokens", [0, 1, 77, 2048])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_at_any_number_of_tokens(model: str, num_tokens: int) -> None:
    heads, head_dim, options = MODELS[model]
    check(num_tokens, heads, head_dim, **options)


@pytest.mark.parametrize("model", ["Gemma 3 4B", "GPT-J 6B"])
def test_float16(model: str) -> None:
    heads, head_dim, options = MODELS[model]
    check(77, heads, head_dim, dtype=torch.float16, **options)


def test_float32_stays_float32() -> None:
    check(77, (32, 8), 128, 128, norm=torch.float32, dtype=torch.float32)


@pytest.mark.parametrize("head_dim", [6, 33])
def test_odd_heads(head_dim: int) -> None:
    check(77, (7, 3), head_dim, rotated=4, page_size=5)
