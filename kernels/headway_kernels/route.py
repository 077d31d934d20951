"""The likeliest experts of each token: softmax, top-k and renormalising in one pass.

    p = softmax(logits[t]),  experts[t] = places of the top_k greatest, falling,  weights[t] = p[experts[t]]

Each logit becomes a 64-bit key: its bits, in an order that integers share, above its expert's place from the
end. So a maximum finds value and expert at once, equal logits go to the lower expert, and the experts of a
token are distinct and exist whatever the logits hold. Layout: logits [T, E] -> weights, experts [T, K].
Grid: one program a token. The softmax is stable (arXiv 1805.02867, section 2), and over the chosen ones alone
if they are renormalised: the rest cancels.

Shape suffixes: T tokens, E experts, K experts a token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.launch import DTYPES, FUSED, mismatch
from headway_kernels.tiles import padded

GONE = tl.constexpr(-(1 << 63))  # below every key
SIGN = tl.constexpr(0x7FFFFFFF)


def route(
    logits_TE: Tensor,
    *,
    top_k: int,
    renormalise: bool,
    weights_TK: Tensor | None = None,
    experts_TK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.route` -> (weights_TK, experts_TK), in the given tensors if there are any.

    Of equal logits the lower expert comes first, which the reference does not promise. A token with a NaN has
    weights of NaN, and experts that exist. Raises ValueError for tensors that do not fit each other, and for
    more experts a token than there are.
    """
    if logits_TE.ndim != 2 or logits_TE.dtype not in DTYPES or logits_TE.stride(1) != 1:
        expected = "[tokens, experts] in a 16- or 32-bit float, experts dense"
        raise mismatch("route", "logits", expected, logits_TE)
    num_tokens, num_experts = logits_TE.shape
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"route: top_k must be from 1 to {num_experts} experts, got {top_k}")
    weights_TK = _result("weights", weights_TK, logits_TE, top_k, torch.float32)
    experts_TK = _result("experts", experts_TK, logits_TE, top_k, torch.int64)
    if num_tokens:
        _route_kernel[(num_tokens,)](
            logits_TE,
            weights_TK,
            experts_TK,
            logits_TE.stride(0),
            E=num_experts,
            K=top_k,
            WIDE=padded(num_experts),
            WIDE_K=padded(top_k, 1),
            RENORMALISE=renormalise,
            num_warps=1 if num_experts <= 256 else 4,
            **FUSED,
        )
    return weights_TK, experts_TK


def _result(name: str, given: Tensor | None, logits_TE: Tensor, top_k: int, dtype: torch.dtype) -> Tensor:
    shape = (len(logits_TE), top_k)
    if given is None:
        return torch.empty(shape, dtype=dtype, device=logits_TE.device)
    fits = given.shape == shape and given.dtype == dtype and given.device == logits_TE.device
    if not fits or not given.is_contiguous():
        raise mismatch("route", name, f"contiguous {dtype} {list(shape)} on {logits_TE.device}", given)
    return given


@triton.jit
def _route_kernel(
    logits_ptr,
    weights_ptr,
    experts_ptr,
    logits_row,
    E: tl.constexpr,
    K: tl.constexpr,
    WIDE: tl.constexpr,
    WIDE_K: tl.constexpr,
    RENORMALISE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    e_E = tl.arange(0, WIDE)
    k_K = tl.arange(0, WIDE_K)
    logit_E = tl.load(logits_ptr + token * logits_row + e_E, mask=e_E < E, other=float("-inf")).to(tl.float32)
    max_ = tl.max(logit_E, 0)
    key_E = (_in_order(logit_E).to(tl.int64) << 32) | (WIDE - e_E).to(tl.int64)
    key_E = tl.where(e_E < E, key_E, GONE)
    best_K = tl.zeros((WIDE_K,), tl.int64)
    for k in range(K):
        best = tl.max(key_E, 0)
        best_K = tl.where(k_K == k, best, best_K)
        key_E = tl.where(key_E == best, GONE, key_E)
    weight_K = tl.exp(_in_order_back((best_K >> 32).to(tl.int32)) - max_)
    weight_K = tl.where(k_K < K, weight_K, 0.0)
    if RENORMALISE:
        weight_K /= tl.sum(weight_K, 0)
    else:
        weight_K /= tl.sum(tl.exp(logit_E - max_), 0)
    tl.store(weights_ptr + token * K + k_K, weight_K, mask=k_K < K)
    tl.store(experts_ptr + token * K + k_K, WIDE - (best_K & 0xFFFFFFFF), mask=k_K < K)


@triton.jit
def _in_order(x):
    """int32 in the order of the float32 x; zeros are one, and NaN is above all."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> 31) & SIGN), SIGN)


@triton.jit
def _in_order_back(ordered):
    """The float32 that has this place in the order."""
    return (ordered ^ ((ordered >> 31) & SIGN)).to(tl.float32, bitcast=True)
