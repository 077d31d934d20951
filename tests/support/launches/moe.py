"""`moe` at sizes of a few models, and `route`. A matrix is one row again and again, which takes no memory."""

from functools import partial

import torch

from headway_kernels.moe import moe
from headway_kernels.reference import silu_mul
from headway_kernels.route import route
from launches import Launch

QWEN3 = {"num_experts": 128, "top_k": 8, "hidden": 2048, "mlp_size": 768}
MIXTRAL = {"num_experts": 8, "top_k": 2, "hidden": 4096, "mlp_size": 14336}
GPT_OSS = {"num_experts": 32, "top_k": 4, "hidden": 2880, "mlp_size": 2880, "biased": True}


def _moe(
    device: str,
    *,
    tokens: int,
    num_experts: int,
    top_k: int,
    hidden: int,
    mlp_size: int,
    biased: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> Launch:
    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x, logits = randn(tokens, hidden), torch.randn(tokens, num_experts, device=device)
    gate_up = randn(num_experts, 1, hidden).expand(-1, 2 * mlp_size, -1)
    down = randn(num_experts, 1, mlp_size).expand(-1, hidden, -1)
    biases = (randn(num_experts, 2 * mlp_size), randn(num_experts, hidden)) if biased else (None, None)

    def launch() -> torch.Tensor:
        weights, experts = route(logits, top_k=top_k, renormalise=True)
        return moe(
            x,
            weights_TK=weights,
            experts_TK=experts,
            gate_up_E2IH=gate_up,
            down_EHI=down,
            activation=silu_mul,
            gate_up_bias_E2I=biases[0],
            down_bias_EH=biases[1],
        )

    return launch


def _route(device: str) -> Launch:
    logits = torch.randn(64, 512, device=device).bfloat16()
    return lambda: route(logits, top_k=10, renormalise=False)


LAUNCHES = {
    "Qwen3-MoE, one token": partial(_moe, tokens=1, **QWEN3),
    "Qwen3-MoE, 64 tokens": partial(_moe, tokens=64, **QWEN3),
    "Qwen3-MoE, 1024 tokens": partial(_moe, tokens=1024, **QWEN3),
    "Mixtral, two tokens": partial(_moe, tokens=2, **MIXTRAL),
    "gpt-oss, 256 tokens": partial(_moe, tokens=256, **GPT_OSS),
    "gpt-oss, 412 of its columns": partial(_moe, tokens=16, **GPT_OSS | {"mlp_size": 412}),
    "gpt-oss, 411 of its columns, many tokens": partial(_moe, tokens=512, **GPT_OSS | {"mlp_size": 411}),
    "Qwen3-MoE, float32": partial(_moe, tokens=32, dtype=torch.float32, **QWEN3),
    "route": _route,
}
