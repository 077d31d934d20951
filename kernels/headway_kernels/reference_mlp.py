"""The part of `headway_kernels.reference` that stands beside attention: activations, and experts.

Shape suffixes: T tokens of the step, H hidden size, I MLP size of this rank, E experts, K experts a token.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor


def silu_mul(gate_up_T2I: Tensor) -> Tensor:
    """silu(gate) * up, gate being the first half of each row -> [T, I]."""
    gate_TI, up_TI = gate_up_T2I.chunk(2, -1)
    return F.silu(gate_TI) * up_TI


def gelu_mul(gate_up_T2I: Tensor, approximate: str = "none") -> Tensor:
    """gelu(gate) * up, as `silu_mul`; approximate: "none" or "tanh" (arXiv 1606.08415)."""
    gate_TI, up_TI = gate_up_T2I.chunk(2, -1)
    return F.gelu(gate_TI, approximate=approximate) * up_TI


def clamped_silu_mul(gate_up_T2I: Tensor, *, clamp: float, alpha: float) -> Tensor:
    """gate * sigmoid(alpha * gate) * (up + 1), as `silu_mul`; first gate is cut above at `clamp`, up on both
    sides (gpt-oss).
    """
    gate_TI, up_TI = gate_up_T2I.chunk(2, -1)
    gate_TI, up_TI = gate_TI.clamp(max=clamp), up_TI.clamp(-clamp, clamp)
    return gate_TI * torch.sigmoid(alpha * gate_TI) * (up_TI + 1)


def route(logits_TE: Tensor, *, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The likeliest experts of each token -> (weights_TK in float32, experts_TK in int64).

    renormalise: the weights sum to one; otherwise they are probabilities among all experts.
    """
    weights_TK, experts_TK = torch.softmax(logits_TE, -1, dtype=torch.float32).topk(top_k, -1)
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return weights_TK, experts_TK


def moe(
    x_TH: Tensor,
    *,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    activation: Callable[[Tensor], Tensor],
    gate_up_bias_E2I: Tensor | None = None,
    down_bias_EH: Tensor | None = None,
) -> Tensor:
    """The weighted sum of each token's experts: down(activation(gate_up(x))) -> [T, H].

    On a CPU tokens are grouped by expert. Elsewhere group sizes are not known to the host, so every expert
    computes every token.
    """

    def expert(index: int, rows: Tensor) -> Tensor:
        up = activation(F.linear(rows, gate_up_E2IH[index], _at(gate_up_bias_E2I, index)))
        return F.linear(up, down_EHI[index], _at(down_bias_EH, index))

    num_experts = len(gate_up_E2IH)
    if not x_TH.is_cpu:
        weights_TE = weights_TK.new_zeros(len(x_TH), num_experts).scatter_(1, experts_TK, weights_TK)
        out_TH = torch.zeros_like(x_TH, dtype=weights_TK.dtype)
        for index in range(num_experts):
            out_TH += weights_TE[:, index, None] * expert(index, x_TH)
        return out_TH.to(x_TH.dtype)
    chosen = experts_TK.flatten()
    order = chosen.argsort(stable=True)
    sizes = chosen.bincount(minlength=num_experts).tolist()
    groups = torch.split(x_TH[order // experts_TK.shape[1]], sizes)
    parts = [expert(index, rows) for index, rows in enumerate(groups) if len(rows)]
    out = torch.empty(len(order), x_TH.shape[1], dtype=x_TH.dtype)
    out[order] = torch.cat(parts)
    return (out.view(*experts_TK.shape, -1) * weights_TK[..., None]).sum(1).to(x_TH.dtype)


def _at(of_E: Tensor | None, index: int) -> Tensor | None:
    return None if of_E is None else of_E[index]


def moe_sizes(most: int, *, top_k: int, gate_up_E2IH: Tensor, down_EHI: Tensor) -> tuple[int, ...]:
    """Numbers of tokens, up to `most`, that between them take every kernel of `moe`: here there are none."""
    return ()
