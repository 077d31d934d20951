"""Run `moe` and `route` on poisoned memory and judge them: shared by interpreter and GPU tests.

Shape suffixes: as in `headway_kernels.reference_mlp`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from attention_cases import assert_as_exact
from headway_kernels import reference


def moe_inputs(
    num_tokens: int,
    *,
    num_experts: int,
    top_k: int,
    hidden: int,
    mlp_size: int,
    biased: bool = False,
    spare: int = 16,
    popular: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Tensor, dict[str, Any]]:
    """x and what `moe` takes beside it, all of it within tensors that hold NaN in every other place.

    spare: values of NaN behind each row; those of an odd number leave rows unaligned.
    popular: no expert from this one on is chosen.
    """

    def within_nan(*shape: int, fan_in: int) -> Tensor:
        wide = torch.full((*shape[:-1], shape[-1] + spare), torch.nan, dtype=dtype, device=device)
        values = wide[..., : shape[-1]]
        return values.copy_(torch.randn(shape, device=device) / fan_in**0.5)

    popularity_TE = torch.rand(num_tokens, num_experts, device=device)
    popularity_TE[:, popular:] -= 1
    return within_nan(num_tokens, hidden, fan_in=1), {
        "weights_TK": torch.rand(num_tokens, top_k, device=device),
        "experts_TK": popularity_TE.topk(top_k).indices,
        "gate_up_E2IH": within_nan(num_experts, 2 * mlp_size, hidden, fan_in=hidden),
        "down_EHI": within_nan(num_experts, hidden, mlp_size, fan_in=mlp_size),
        "activation": reference.silu_mul,
        "gate_up_bias_E2I": within_nan(num_experts, 2 * mlp_size, fan_in=1) if biased else None,
        "down_bias_EH": within_nan(num_experts, hidden, fan_in=1) if biased else None,
    }


def check_moe(moe: Callable[..., Tensor], num_tokens: int, **sizes: Any) -> None:
    x_TH, others = moe_inputs(num_tokens, **sizes)
    with poisoned_memory():
        found = moe(x_TH, **others)
    exact = reference.moe(x_TH.double(), **in_float64(others))
    assert_as_exact(found, reference.moe(x_TH, **others), exact)


def check_route(
    route: Callable[..., tuple[Tensor, Tensor]],
    logits_TE: Tensor,
    *,
    top_k: int,
    renormalise: bool,
) -> None:
    """Experts in the order of a stable sort; their weights beside those of a softmax in float64.

    A GPU's exponential is good to 2^-22, and its argument to half an ulp of what the likeliest is ahead by.
    """
    with poisoned_memory():
        weights_TK, experts_TK = route(logits_TE, top_k=top_k, renormalise=renormalise)
    order_TE = logits_TE.float().sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(experts_TK, order_TE[:, :top_k])
    exact_TK = logits_TE.double().softmax(-1).gather(1, experts_TK)
    if renormalise:
        exact_TK /= exact_TK.sum(-1, keepdim=True)
    assert weights_TK.dtype == torch.float32
    torch.testing.assert_close(weights_TK.double(), exact_TK, rtol=2e-6, atol=1e-7)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """PyTorch fills new tensors with NaN, and integers with the greatest there is."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
