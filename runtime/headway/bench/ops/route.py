"""`route` beside PyTorch's softmax and top-k."""

from collections.abc import Mapping
from functools import partial

import torch

from headway.bench.contest import Contender
from headway.bench.ops.case import Case
from headway_kernels import gpu, reference


def _contenders(tokens: int, num_experts: int, top_k: int) -> Mapping[str, Contender]:
    logits_TE = torch.randn(tokens, num_experts, device="cuda", dtype=torch.bfloat16)
    return {
        "ours": lambda: gpu.route(logits_TE, top_k=top_k, renormalise=True),
        "torch": lambda: reference.route(logits_TE, top_k=top_k, renormalise=True),
    }


def _case(name: str, *, tokens: int, num_experts: int, top_k: int) -> Case:
    return Case(
        op="route",
        shape=f"{name}, T {tokens}",
        num_bytes=tokens * (2 * num_experts + 12 * top_k),
        contenders=partial(_contenders, tokens, num_experts, top_k),
    )


CASES = (
    _case("Qwen3-MoE", tokens=64, num_experts=128, top_k=8),
    _case("Qwen3-MoE", tokens=4096, num_experts=128, top_k=8),
    _case("Mixtral", tokens=64, num_experts=8, top_k=2),
)
