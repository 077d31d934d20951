"""`kv_write` beside the same in PyTorch's ops, on the heads of well-known models in bfloat16.

A call runs through the layers of a step, each with inputs and pools of its own: inputs of a decode step are
in the L2, where a projection has just left them, and those of a prefill are not.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headway.bench.contest import Contender
from headway.bench.ops.case import Case
from headway_kernels import gpu, reference

NUM_LAYERS = 32
PAGE_SIZE = 16
BFLOAT16: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}


def _case(
    model: str,
    num_tokens: int,
    *,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    normed: bool = False,
    decode: bool = True,
) -> Case:
    """decode: every token goes to a page of its own; otherwise one follows the other."""
    sizes = (num_q_heads, num_kv_heads, num_kv_heads)
    token_bytes = 2 * 2 * sum(sizes) * head_dim + 4 * head_dim + 8  # half of cosines and sines will do

    def contenders() -> Mapping[str, Contender]:
        layers = list(_layers(num_tokens, sizes, head_dim, normed, PAGE_SIZE if decode else 1))
        ways = {"ours": gpu.kv_write, "PyTorch": reference.kv_write}
        return {name: partial(_run, kv_write, layers) for name, kv_write in ways.items()}

    return Case(
        op="kv_write",
        shape=f"{model}, {num_tokens}",
        num_bytes=num_tokens * token_bytes,
        contenders=contenders,
        num_runs=NUM_LAYERS,
    )


def _layers(
    num_tokens: int, sizes: tuple[int, int, int], head_dim: int, normed: bool, distance: int
) -> Iterator[dict[str, Any]]:
    """The arguments for each layer. Slots are `distance` apart."""
    angle_TF = torch.randn(num_tokens, head_dim // 2, device="cuda")
    cos_TR, sin_TR = torch.cat((angle_TF, angle_TF), 1).cos(), torch.cat((-angle_TF, angle_TF), 1).sin()
    slots_T = distance * torch.arange(num_tokens, device="cuda")
    num_pages = -(-distance * num_tokens // PAGE_SIZE)
    for _ in range(NUM_LAYERS):
        qkv_TXD = torch.randn(num_tokens, sum(sizes), head_dim, **BFLOAT16)
        heads = dict(zip(("q_TQD", "k_TGD", "v_TGD"), qkv_TXD.split_with_sizes(sizes, 1), strict=True))
        k_pool, v_pool = (torch.zeros(num_pages, sizes[1], PAGE_SIZE, head_dim, **BFLOAT16) for _ in "kv")
        norm = {f"{name}_norm_D": torch.ones(head_dim, **BFLOAT16) for name in "qk"} if normed else {}
        yield {
            **heads,
            "cos_TR": cos_TR,
            "sin_TR": sin_TR,
            "slots_T": slots_T,
            "k_pool": k_pool,
            "v_pool": v_pool,
            "eps": 1e-6,
            **norm,
        }


def _run(kv_write: Callable[..., Tensor], layers: list[dict[str, Any]]) -> None:
    for arguments in layers:
        kv_write(**arguments)


LLAMA_8B: dict[str, Any] = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}
FALCON_7B: dict[str, Any] = {"num_q_heads": 71, "num_kv_heads": 1, "head_dim": 64}
CASES: tuple[Case, ...] = (
    _case("Llama 3.1 8B", 1, **LLAMA_8B),
    _case("Llama 3.1 8B", 256, **LLAMA_8B),
    _case("Falcon 7B", 64, **FALCON_7B),
    _case("Qwen3 8B, normed", 64, **LLAMA_8B, normed=True),
    _case("Llama 3.1 8B, prefill", 4096, **LLAMA_8B, decode=False),
)
