"""The MLPs of a layer's experts, of which each token takes a few, as two grouped matrix products.

    out[t] = sum_k weights[t, k] * expert(experts[t, k], x[t])
    expert(e, x) = down[e] @ activation(gate_up[e] @ x + gate_up_bias[e]) + down_bias[e]

`expert_blocks` puts the pairs (token, k) of an expert into blocks of rows, and `grouped_matmul` multiplies
each block by its expert's weights. Rows of x are gathered by token and results written by pair, so that
nothing is sorted back. The second product is scaled by the pair's weight before it is stored, and a last
kernel adds up each token's K. All sums are float32.

Layout: x [T, H], gate_up [E, N, H] (N is 2 I if gated), down [E, H, I]; between them [P, N], [P, I], [P, H].
Grid of the sum: (T, tiles of H).

The floor of a few tokens is the weights of the experts they take, read once; that of many, the matrix units.

Source: the fused_moe of vLLM and SGLang (gathered rows, padded blocks, results by pair).

Shape suffixes: T tokens, H hidden size, I MLP size of this rank, N rows of gate_up, E experts, K experts a
token, P pairs.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels import debug
from headway_kernels.expert_blocks import expert_blocks
from headway_kernels.grouped_matmul import grouped_matmul
from headway_kernels.launch import DTYPES, FUSED, mismatch
from headway_kernels.tiles import padded
from headway_kernels.tiles_matmul import grouped_rows

CACHED = 32 << 20  # bytes of results by pair that stay in a GPU's cache until they are added up


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
    out_TH: Tensor | None = None,
    check_values: bool = False,
) -> Tensor:
    """As `reference.moe` -> [T, H], in the given tensor if there is one.

    weights_TK: float32; experts_TK: int64, from 0 to E - 1.
    check_values: look at the experts first, which waits for the device (`debug`).
    activation: from [P, rows of gate_up] to [P, I].
    A token's K results are kept in float32 while they stay in the cache, and in x's dtype, as the reference's
    are, where they would be written to memory and read back.
    Raises ValueError for tensors that do not fit each other, and for what `activation` gives.
    """
    _check(x_TH, weights_TK, experts_TK, gate_up_E2IH, down_EHI, gate_up_bias_E2I, down_bias_EH, out_TH)
    if check_values:
        debug.check_indices("moe", "experts", experts_TK, len(down_EHI))
    out_TH = torch.empty(x_TH.shape, dtype=x_TH.dtype, device=x_TH.device) if out_TH is None else out_TH
    num_tokens, hidden = x_TH.shape
    top_k, num_experts = experts_TK.shape[1], len(down_EHI)
    num_pairs = num_tokens * top_k
    if not num_pairs or not hidden:
        return out_TH.zero_()
    weights_TK, experts_TK = weights_TK.contiguous(), experts_TK.contiguous()
    rows = grouped_rows(num_pairs, num_experts, dtype=x_TH.dtype)
    blocks = expert_blocks(experts_TK, num_experts=num_experts, rows=rows)
    gate_up_PN = torch.empty(num_pairs, gate_up_E2IH.shape[1], dtype=x_TH.dtype, device=x_TH.device)
    grouped_matmul(blocks, x_TH, gate_up_E2IH, gate_up_bias_E2I, gate_up_PN, share=top_k)
    up_PI = activation(gate_up_PN)
    if up_PI.shape != (num_pairs, down_EHI.shape[2]) or up_PI.dtype != x_TH.dtype:
        expected = f"{x_TH.dtype} [{num_pairs}, {down_EHI.shape[2]}]"
        raise ValueError(f"moe: activation must give {expected}, got {up_PI.dtype} {list(up_PI.shape)}")
    del gate_up_PN  # its memory may hold the results by pair
    dtype = parts_dtype(num_pairs, hidden, x_TH.dtype)
    parts_PH = torch.empty(num_pairs, hidden, dtype=dtype, device=x_TH.device)
    grouped_matmul(blocks, up_PI.contiguous(), down_EHI, down_bias_EH, parts_PH, scale_P=weights_TK)
    columns = min(padded(hidden), 1024)
    _moe_sum_kernel[(num_tokens, triton.cdiv(hidden, columns))](
        parts_PH,
        out_TH,
        hidden,
        out_TH.stride(0),
        K=top_k,
        COLUMNS=columns,
        num_warps=4,
        **FUSED,
    )
    return out_TH


def parts_dtype(num_pairs: int, hidden: int, dtype: torch.dtype) -> torch.dtype:
    """Of the results by pair, for x of `dtype`."""
    return torch.float32 if num_pairs * hidden * 4 <= CACHED else dtype


@triton.jit
def _moe_sum_kernel(parts_ptr, out_ptr, hidden, out_row, K: tl.constexpr, COLUMNS: tl.constexpr):
    """A token's K results, in their order."""
    token = tl.program_id(0).to(tl.int64)
    n_N = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    acc_N = tl.zeros((COLUMNS,), tl.float32)
    for k in tl.static_range(K):
        acc_N += tl.load(parts_ptr + (token * K + k) * hidden + n_N, mask=n_N < hidden, other=0.0)
    tl.store(out_ptr + token * out_row + n_N, acc_N.to(out_ptr.dtype.element_ty), mask=n_N < hidden)


def _check(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    out: Tensor | None,
) -> None:
    """Raise ValueError, naming argument, expected and found, for what the kernels do not take."""
    if x.ndim != 2 or x.dtype not in DTYPES or x.stride(1) != 1:
        raise mismatch("moe", "x", "[tokens, hidden] in a 16- or 32-bit float, hidden dense", x)
    if experts.ndim != 2 or len(experts) != len(x) or experts.dtype != torch.int64:
        raise mismatch("moe", "experts", f"torch.int64 [{len(x)}, experts a token]", experts)
    if gate_up.ndim != 3 or gate_up.shape[2] != x.shape[1]:
        raise mismatch("moe", "gate_up", f"[experts, rows, {x.shape[1]}]", gate_up)
    num_experts, num_rows, hidden = gate_up.shape
    if down.ndim != 3 or down.shape[:2] != (num_experts, hidden):
        raise mismatch("moe", "down", f"[{num_experts}, {hidden}, MLP size]", down)
    wanted = {
        "weights": (weights, experts.shape, torch.float32),
        "experts": (experts, experts.shape, torch.int64),
        "gate_up": (gate_up, gate_up.shape, x.dtype),
        "down": (down, down.shape, x.dtype),
        "gate_up_bias": (gate_up_bias, (num_experts, num_rows), x.dtype),
        "down_bias": (down_bias, (num_experts, hidden), x.dtype),
        "out": (out, x.shape, x.dtype),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != x.device:
            raise mismatch("moe", name, f"{dtype} {list(shape)} on {x.device}", tensor)
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise mismatch("moe", name, "dense in its last dimension", tensor)
