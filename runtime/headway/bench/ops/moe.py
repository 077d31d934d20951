"""`moe` beside PyTorch's grouped product, and beside every expert computing every token.

Routing is even: token t takes the experts t K, ..., t K + K - 1, modulo E. A call of few tokens is repeated
with other experts until all have had their turn, so that weights come from memory and not from a cache.

Shape suffixes: T tokens, H hidden size, I MLP size, E experts, K experts a token, P pairs.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from headway.bench.contest import Contender
from headway.bench.ops.case import Case
from headway_kernels import gpu, reference

QWEN3 = {"num_experts": 128, "top_k": 8, "hidden": 2048, "mlp_size": 768}
MIXTRAL = {"num_experts": 8, "top_k": 2, "hidden": 4096, "mlp_size": 14336}
Moe = Callable[..., Tensor]


def grouped(
    x_TH: Tensor,
    *,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """As `reference.moe`, by `torch.nn.functional.grouped_mm` on rows sorted by expert."""
    order_P = experts_TK.flatten().argsort(stable=True)
    sorted_P = experts_TK.flatten()[order_P]
    ends_E = torch.searchsorted(sorted_P, torch.arange(len(down_EHI), device=x_TH.device), right=True).int()
    rows_PH = x_TH[order_P // experts_TK.shape[1]]
    up_PI = activation(F.grouped_mm(rows_PH, gate_up_E2IH.mT, offs=ends_E))
    parts_PH = F.grouped_mm(up_PI, down_EHI.mT, offs=ends_E)
    out_PH = torch.empty_like(parts_PH)
    out_PH[order_P] = parts_PH
    return (out_PH.view(*experts_TK.shape, -1) * weights_TK[..., None]).sum(1).to(x_TH.dtype)


def _contenders(
    num_runs: int, *, tokens: int, num_experts: int, top_k: int, hidden: int, mlp_size: int
) -> Mapping[str, Contender]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    num_pairs = tokens * top_k
    layer: dict[str, Any] = {
        "gate_up_E2IH": randn(num_experts, 2 * mlp_size, hidden).div_(hidden**0.5),
        "down_EHI": randn(num_experts, hidden, mlp_size).div_(mlp_size**0.5),
        "weights_TK": torch.rand(tokens, top_k, device="cuda"),
        "activation": reference.silu_mul,
    }
    x_TH = randn(tokens, hidden)
    pairs = torch.arange(num_runs * num_pairs, device="cuda").view(num_runs, tokens, top_k) % num_experts

    def runs(moe: Moe, activation: Callable[[Tensor], Tensor]) -> Contender:
        options = layer | {"activation": activation}
        return lambda: [moe(x_TH, experts_TK=experts_TK, **options) for experts_TK in pairs]

    return {
        "ours": runs(gpu.moe, gpu.silu_mul),
        "torch grouped_mm": runs(grouped, reference.silu_mul),
        "every expert": runs(reference.moe, reference.silu_mul),
    }


def _case(name: str, *, tokens: int, num_experts: int, top_k: int, hidden: int, mlp_size: int) -> Case:
    num_used = min(num_experts, tokens * top_k)
    num_runs = max(1, num_experts // num_used)
    sizes = {"num_experts": num_experts, "top_k": top_k, "hidden": hidden, "mlp_size": mlp_size}
    return Case(
        op="moe",
        shape=f"{name}, T {tokens}",
        num_bytes=2 * (3 * num_used * hidden * mlp_size + 2 * tokens * hidden) + 12 * tokens * top_k,
        contenders=partial(_contenders, num_runs, tokens=tokens, **sizes),
        num_runs=num_runs,
    )


CASES = (
    _case("Qwen3-MoE", tokens=1, **QWEN3),
    _case("Qwen3-MoE", tokens=64, **QWEN3),
    _case("Qwen3-MoE", tokens=4096, **QWEN3),
    _case("Mixtral", tokens=16, **MIXTRAL),
)
