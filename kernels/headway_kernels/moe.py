"""The MLPs of a layer's experts, of which each token takes a few, as two grouped matrix products.

    out[t] = sum_k weights[t, k] * (down[e] @ activation(gate_up[e] @ x[t] + bias[e]) + bias'[e]),  e = experts[t, k]

`expert_blocks` puts the pairs (token, k) of an expert into blocks of rows; a program multiplies a block by a
tile of that expert's columns, gathering rows of x by token and writing its results by pair, so that nothing is
sorted back. The second product is scaled by the pair's weight before it is stored, and a last kernel adds up
each token's K. All sums are float32; what is rounded on the way is what goes into a matrix product.

Layout: x [T, H], gate_up [E, N, H] (N is 2 I if gated), down [E, H, I]; between them [P, N], [P, I], [P, H].
Grid: (blocks * tiles of columns), blocks first in groups of `TOGETHER`, so that blocks of an expert meet at its
weights; then (T, tiles of H). Blocks that nobody needs end at once.

The floor of a few tokens is the weights of the experts they take, read once; that of many the matrix units.

Source: the fused_moe of vLLM and SGLang (gathered rows, padded blocks).

Shape suffixes: T tokens, H hidden size, I MLP size of this rank, N rows of gate_up, E experts, K experts a token,
P pairs, M rows and N columns of a tile, D depth of a step.
"""

from collections.abc import Callable
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.expert_blocks import ExpertBlocks, expert_blocks
from headway_kernels.launch import DTYPES, capability, precision
from headway_kernels.tiles import MatmulTiles, grouped_rows, grouped_tiles, padded

TOGETHER = 8
UNIT = 16  # values that a row is a multiple of, if it can be: what is said of it decides how wide loads are
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
) -> Tensor:
    """As `reference.moe` -> [T, H], in the given tensor if there is one.

    weights_TK: float32; experts_TK: int64, from 0 to E - 1, which is not checked: that would wait for the device.
    activation: from [P, rows of gate_up] to [P, I].
    A token's K results are kept in float32 while they stay in the cache, and in x's dtype, as the reference's
    are, where they would be written to memory and read back.
    Raises ValueError for tensors that do not fit each other.
    """
    _check(x_TH, weights_TK, experts_TK, gate_up_E2IH, down_EHI, gate_up_bias_E2I, down_bias_EH, out_TH)
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
    _multiply(blocks, x_TH, gate_up_E2IH, gate_up_bias_E2I, gate_up_PN, share=top_k)
    up_PI = activation(gate_up_PN)
    if up_PI.shape != (num_pairs, down_EHI.shape[2]) or up_PI.dtype != x_TH.dtype:
        expected = f"{x_TH.dtype} [{num_pairs}, {down_EHI.shape[2]}]"
        raise ValueError(f"moe: activation must give {expected}, got {up_PI.dtype} {list(up_PI.shape)}")
    cached = num_pairs * hidden * 4 <= CACHED
    dtype = torch.float32 if cached else x_TH.dtype
    parts_PH = torch.empty(num_pairs, hidden, dtype=dtype, device=x_TH.device)
    _multiply(blocks, up_PI.contiguous(), down_EHI, down_bias_EH, parts_PH, scale_P=weights_TK)
    columns = min(padded(hidden), 1024)
    _sum_kernel[(num_tokens, triton.cdiv(hidden, columns))](
        parts_PH,
        out_TH,
        hidden,
        out_TH.stride(0),
        K=top_k,
        COLUMNS=columns,
        num_warps=4,
    )
    return out_TH


def _multiply(
    blocks: ExpertBlocks,
    a: Tensor,
    weight_END: Tensor,
    bias_EN: Tensor | None,
    out_PN: Tensor,
    *,
    share: int = 1,
    scale_P: Tensor | None = None,
) -> None:
    """out[p] = (weight[e] @ a[p // share] + bias[e]) * scale[p], e being the expert of p's block."""
    _, num_columns, depth = weight_END.shape
    if not num_columns:
        return
    unit = gcd(UNIT, depth, a.stride(0), weight_END.stride(0), weight_END.stride(1))
    tile = grouped_tiles(
        num_blocks=len(blocks),
        rows=blocks.rows,
        num_columns=num_columns,
        unit=unit,
        dtype=a.dtype,
        capability=capability(a.device),
    )
    _grouped_kernel[(len(blocks) * triton.cdiv(num_columns, tile.columns),)](
        a,
        weight_END,
        bias_EN,
        scale_P,
        out_PN,
        blocks.pairs,
        blocks.experts,
        len(blocks),
        num_columns,
        depth // unit,
        a.stride(0) // unit,
        weight_END.stride(0) // unit,
        weight_END.stride(1) // unit,
        0 if bias_EN is None else bias_EN.stride(0),
        UNIT=unit,
        SHARE=share,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        WHOLE=depth % tile.depth == 0,
        TOGETHER=TOGETHER,
        HAS_BIAS=bias_EN is not None,
        HAS_SCALE=scale_P is not None,
        PRECISION=precision(a.dtype),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


@triton.jit(do_not_specialize=["num_blocks"])
def _grouped_kernel(
    a_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    out_ptr,
    pairs_ptr,
    block_experts_ptr,
    num_blocks,
    num_columns,
    depth,
    a_row,
    weight_expert,
    weight_row,
    bias_expert,
    UNIT: tl.constexpr,
    SHARE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,
    TOGETHER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    depth *= UNIT
    in_group = TOGETHER * tl.cdiv(num_columns, COLUMNS)
    group = tl.program_id(0) // in_group
    together = tl.minimum(num_blocks - group * TOGETHER, TOGETHER)
    within = tl.program_id(0) % in_group
    block = group * TOGETHER + within % together
    expert = tl.load(block_experts_ptr + block).to(tl.int64)
    m_M = tl.arange(0, ROWS)
    pair_M = tl.load(pairs_ptr + block * ROWS + m_M)
    if expert < 0:
        return
    real_M = pair_M >= 0
    n_N = within // together * COLUMNS + tl.arange(0, COLUMNS)
    real_N = n_N < num_columns
    d_D = tl.arange(0, DEPTH)
    # Columns behind the last are the last one again: a mask would be looked at in every step.
    column_N = tl.minimum(n_N, num_columns - 1)
    a_MD = a_ptr + (pair_M // SHARE).to(tl.int64)[:, None] * (a_row * UNIT) + d_D
    weight_ND = weight_ptr + expert * (weight_expert * UNIT) + column_N[:, None] * (weight_row * UNIT) + d_D
    acc_MN = tl.zeros((ROWS, COLUMNS), tl.float32)
    for done in range(0, depth, DEPTH):
        if WHOLE:
            a = tl.load(a_MD, mask=real_M[:, None], other=0.0)
            weight = tl.load(weight_ND)
        else:
            left_D = d_D < depth - done
            a = tl.load(a_MD, mask=real_M[:, None] & left_D, other=0.0)
            weight = tl.load(weight_ND, mask=left_D[None], other=0.0)
        acc_MN = tl.dot(a, weight.T, acc_MN, input_precision=PRECISION)
        a_MD += DEPTH
        weight_ND += DEPTH
    if HAS_BIAS:
        acc_MN += tl.load(bias_ptr + expert * bias_expert + n_N, mask=real_N, other=0.0).to(tl.float32)
    if HAS_SCALE:
        acc_MN *= tl.load(scale_ptr + pair_M, mask=real_M, other=0.0)[:, None]
    out_MN = out_ptr + pair_M.to(tl.int64)[:, None] * num_columns + n_N
    tl.store(out_MN, acc_MN.to(out_ptr.dtype.element_ty), mask=real_M[:, None] & real_N)


@triton.jit
def _sum_kernel(parts_ptr, out_ptr, hidden, out_row, K: tl.constexpr, COLUMNS: tl.constexpr):
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
        raise _error("x", "[tokens, hidden] in a 16- or 32-bit float, hidden dense", x)
    if experts.ndim != 2 or len(experts) != len(x) or experts.dtype != torch.int64:
        raise _error("experts", f"torch.int64 [{len(x)}, experts a token]", experts)
    if gate_up.ndim != 3 or gate_up.shape[2] != x.shape[1]:
        raise _error("gate_up", f"[experts, rows, {x.shape[1]}]", gate_up)
    num_experts, num_rows, hidden = gate_up.shape
    if down.ndim != 3 or down.shape[:2] != (num_experts, hidden):
        raise _error("down", f"[{num_experts}, {hidden}, MLP size]", down)
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
            raise _error(name, f"{dtype} {list(shape)} on {x.device}", tensor)
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise _error(name, "dense in its last dimension", tensor)


def _error(name: str, expected: str, found: Tensor) -> ValueError:
    got = f"{found.dtype} {list(found.shape)} on {found.device}, strides {list(found.stride())}"
    return ValueError(f"moe: {name} must be {expected}, got {got}")
