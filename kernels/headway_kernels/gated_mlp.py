"""Gated activations of an MLP: act(gate) * up, the two being the halves of each row.

    silu_mul          g / (1 + e^-g) * u
    gelu_mul          g / 2 * (1 + erf(g / sqrt 2)) * u, or with tanh for erf (arXiv 1606.08415):
                      (1 + tanh z) / 2 = 1 / (1 + e^-2z), z = sqrt(2 / pi) (g + 0.044715 g^3)
    clamped_silu_mul  g / (1 + e^(-alpha g)) * (u + 1), g cut above at `clamp` and u on both sides (gpt-oss)

All in float32, rounded once. The logistic form needs no tanh, and loses no digits where 1 + tanh z cancels.

Layout: [T, 2 I], rows apart by any stride, -> [T, I] dense. Grid: a flat one, of a program for each row and
`VALUES` of its I values.

Shape suffixes: as in `reference_mlp`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.launch import DTYPES, FUSED, mismatch
from headway_kernels.online_softmax import LOG2_E

VALUES = 1024  # of a program
WARPS = 4  # so eight values a thread: in half precision, a load of 16 bytes from each half
HALF_SQRT_2 = tl.constexpr(0.7071067811865476)
SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
CUBIC = tl.constexpr(0.044715)
EXACT_OR_TANH = {"none": "gelu", "tanh": "gelu_tanh"}


def silu_mul(gate_up_T2I: Tensor, *, out_TI: Tensor | None = None) -> Tensor:
    """As `reference.silu_mul` -> [T, I], in `out_TI` if given. Raises ValueError for what does not fit."""
    return _gated_mlp("silu_mul", gate_up_T2I, out_TI, "silu")


def gelu_mul(gate_up_T2I: Tensor, approximate: str = "none", *, out_TI: Tensor | None = None) -> Tensor:
    """As `reference.gelu_mul` -> [T, I], in `out_TI` if given. Raises ValueError for what does not fit."""
    if approximate not in EXACT_OR_TANH:
        raise ValueError(f'gelu_mul: approximate must be "none" or "tanh", got {approximate!r}')
    return _gated_mlp("gelu_mul", gate_up_T2I, out_TI, EXACT_OR_TANH[approximate])


def clamped_silu_mul(
    gate_up_T2I: Tensor, *, clamp: float, alpha: float, out_TI: Tensor | None = None
) -> Tensor:
    """As `reference.clamped_silu_mul` -> [T, I], in `out_TI` if given. Raises ValueError for what does not
    fit.
    """
    if not clamp > 0:
        raise ValueError(f"clamped_silu_mul: clamp must be positive, got {clamp}")
    return _gated_mlp("clamped_silu_mul", gate_up_T2I, out_TI, "clamped_silu", float(clamp), float(alpha))


def _gated_mlp(
    op: str,
    gate_up_T2I: Tensor,
    out_TI: Tensor | None,
    activation: str,
    clamp: float = 0.0,
    alpha: float = 0.0,
) -> Tensor:
    _check(op, gate_up_T2I, out_TI)
    num_rows, size = len(gate_up_T2I), gate_up_T2I.shape[1] // 2
    if out_TI is None:
        out_TI = torch.empty(num_rows, size, dtype=gate_up_T2I.dtype, device=gate_up_T2I.device)
    num_blocks = triton.cdiv(size, VALUES)
    if num_rows * num_blocks:
        _gated_mlp_kernel[(num_rows * num_blocks,)](
            gate_up_T2I,
            out_TI,
            gate_up_T2I.stride(0),
            clamp,
            alpha,
            I=size,
            BLOCKS=num_blocks,
            BLOCK=VALUES,
            ACTIVATION=activation,
            num_warps=WARPS,
            **FUSED,
        )
    return out_TI


def _check(op: str, gate_up: Tensor, out: Tensor | None) -> None:
    """Raise ValueError, naming argument, expected and found, for what the kernel does not take."""
    if gate_up.ndim != 2 or gate_up.dtype not in DTYPES or gate_up.shape[1] % 2 or gate_up.stride(1) != 1:
        raise mismatch(op, "gate_up_T2I", "[T, 2 I] in a 16- or 32-bit float, rows dense", gate_up)
    if out is not None:
        shape = (len(gate_up), gate_up.shape[1] // 2)
        same_kind = out.dtype == gate_up.dtype and out.device == gate_up.device
        if out.shape != shape or not same_kind or not out.is_contiguous():
            expected = f"{gate_up.dtype} {list(shape)} on {gate_up.device}, contiguous"
            raise mismatch(op, "out_TI", expected, out)


@triton.jit
def _gated_mlp_kernel(
    gate_up_ptr,
    out_ptr,
    stride,
    clamp,
    alpha,
    I: tl.constexpr,  # noqa: E741 (the legend's)
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    row = (tl.program_id(0) // BLOCKS).to(tl.int64)
    i_I = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    gate_ptr_I = gate_up_ptr + row * stride + i_I
    gate_I = tl.load(gate_ptr_I, mask=i_I < I, other=0.0).to(tl.float32)
    up_I = tl.load(gate_ptr_I + I, mask=i_I < I, other=0.0).to(tl.float32)
    out_I = gated(gate_I, up_I, clamp, alpha, ACTIVATION)
    tl.store(out_ptr + row * I + i_I, out_I.to(out_ptr.dtype.element_ty), mask=i_I < I)


@triton.jit
def gated(gate, up, clamp, alpha, ACTIVATION: tl.constexpr):
    """act(gate) * up in float32; `clamp` and `alpha` are those of "clamped_silu". NaN stays NaN."""
    if ACTIVATION == "silu":
        share = _logistic(gate)
    elif ACTIVATION == "gelu":
        share = 0.5 + 0.5 * tl.math.erf(gate * HALF_SQRT_2)
    elif ACTIVATION == "gelu_tanh":
        share = _logistic((gate + gate * gate * gate * CUBIC) * (2.0 * SQRT_2_OVER_PI))
    else:
        tl.static_assert(ACTIVATION == "clamped_silu")
        gate = tl.minimum(gate, clamp, propagate_nan=tl.PropagateNan.ALL)
        up = tl.clamp(up, -clamp, clamp, propagate_nan=tl.PropagateNan.ALL) + 1.0
        share = _logistic(gate * alpha)
    return gate * share * up


@triton.jit
def _logistic(score):
    """1 / (1 + e^-score)"""
    return 1.0 / (1.0 + tl.exp2(score * -LOG2_E))
