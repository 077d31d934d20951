"""What each operation means, in plain PyTorch: the CPU path, and what kernels are judged against.

A pool is [pages, kv_heads, page_size, head_dim]; a slot is one token's place: page * page_size + offset.
Nothing here waits for a GPU: whatever shapes depend on comes as Python integers.

Attention is in `reference_attention`, gated products and experts in `reference_mlp`; all are found here.

Shape suffixes: T tokens of the step, B sequences that decode, S sequences that prefill, P pages of a table,
L positions in a context, Q query heads of this rank, G its KV heads, N query heads of one KV head,
D values of a head, R rotated ones, H hidden size, O outputs of a linear layer, K parts of a context.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from headway_kernels.reference_all_reduce import all_reduce as all_reduce
from headway_kernels.reference_all_reduce import all_reduce_norm as all_reduce_norm
from headway_kernels.reference_attention import DECODE_BYTES as DECODE_BYTES
from headway_kernels.reference_attention import decode_bytes as decode_bytes
from headway_kernels.reference_attention import flash_prefill as flash_prefill
from headway_kernels.reference_attention import flash_prefill_dense as flash_prefill_dense
from headway_kernels.reference_attention import merge as merge
from headway_kernels.reference_attention import paged_decode as paged_decode
from headway_kernels.reference_attention import plan_decode as plan_decode
from headway_kernels.reference_mlp import clamped_silu_mul as clamped_silu_mul
from headway_kernels.reference_mlp import gelu_mul as gelu_mul
from headway_kernels.reference_mlp import moe as moe
from headway_kernels.reference_mlp import moe_sizes as moe_sizes
from headway_kernels.reference_mlp import route as route
from headway_kernels.reference_mlp import silu_mul as silu_mul
from headway_kernels.reference_sample import choose as choose
from headway_kernels.reference_sample import floors as floors
from headway_kernels.reference_sample import log_softmax as log_softmax
from headway_kernels.reference_sample import penalise_ as penalise_
from headway_kernels.reference_sample import sample as sample
from headway_kernels.reference_sample import sample_shard as sample_shard


def linear(
    x_TH: Tensor, weight_OH: Tensor, bias_O: Tensor | None = None, residual_TO: Tensor | None = None
) -> Tensor:
    """x @ weight.T + bias -> out_TO; it is rounded, and then `residual_TO` is added, if there is one."""
    out_TO = F.linear(x_TH, weight_OH, bias_O)
    return out_TO if residual_TO is None else out_TO + residual_TO


def rms_norm(
    x_TH: Tensor, weight_H: Tensor, eps: float, residual_TH: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Root mean square norm (arXiv 1910.07467) of `x_TH + residual_TH`; returns (normed, the sum).

    The sum is rounded to the dtype of x; its norm is computed in float32 at least. The weight may be wider
    than x. More dimensions may stand before H: queries and keys are normalised by head.
    """
    if residual_TH is not None:
        x_TH = x_TH + residual_TH
    if weight_H.dtype == x_TH.dtype:
        return F.rms_norm(x_TH, weight_H.shape, weight_H, eps), x_TH
    return F.rms_norm(x_TH.float(), weight_H.shape, weight_H, eps).to(x_TH.dtype), x_TH


def layer_norm(
    x_TH: Tensor,
    weight_H: Tensor,
    bias_H: Tensor | None,
    eps: float,
    residual_TH: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Layer norm (arXiv 1607.06450) of `x_TH + residual_TH`; returns (normed, the sum).

    The sum is rounded to the dtype of x; its norm is computed in float32 at least.
    """
    if residual_TH is not None:
        x_TH = x_TH + residual_TH
    return F.layer_norm(x_TH, weight_H.shape, weight_H, bias_H, eps), x_TH


def kv_write(
    q_TQD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    *,
    cos_TR: Tensor | None,
    sin_TR: Tensor | None,
    slots_T: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    interleaved: bool = False,
    q_norm_D: Tensor | None = None,
    k_norm_D: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Norm queries and keys, rotate them by their positions, write keys and values to `slots_T`; return the
    queries.

    q_norm_D, k_norm_D, eps: weights of `rms_norm` of each head for itself; without them there is no norm.
    cos_TR, sin_TR: of R / 2 angles a token, twice: halves of `cos_TR` are equal, and `sin_TR` has its first
        half negated. Without them nothing is rotated.
    interleaved: which of the first R values of a head angle i turns: (2i, 2i + 1), as in GPT-J, or else
        (i, i + R/2), as in most Hugging Face checkpoints. Cosines and sines are laid out the same for both.
    slots_T: int64, distinct and within the pools; nothing else of the pools is touched.
    """
    page_size = k_pool.shape[2]
    page_T, offset_T = slots_T // page_size, slots_T % page_size
    if q_norm_D is not None and k_norm_D is not None:
        q_TQD, k_TGD = rms_norm(q_TQD, q_norm_D, eps)[0], rms_norm(k_TGD, k_norm_D, eps)[0]
    if cos_TR is not None and sin_TR is not None:
        rotate = _rotate_interleaved if interleaved else _rotate
        cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
        q_TQD, k_TGD = rotate(q_TQD, cos_T1R, sin_T1R), rotate(k_TGD, cos_T1R, sin_T1R)
    k_pool[page_T, :, offset_T] = k_TGD
    v_pool[page_T, :, offset_T] = v_TGD
    return q_TQD


def _rotate(x_TND: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    dim = cos_T1R.shape[-1]
    if dim < x_TND.shape[-1]:
        turned = _rotate(x_TND[..., :dim], cos_T1R, sin_T1R)
        return torch.cat((turned, x_TND[..., dim:]), -1)
    return torch.addcmul(x_TND * cos_T1R, x_TND.roll(dim // 2, -1), sin_T1R).to(x_TND.dtype)


def _rotate_interleaved(x_TND: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    """As `_rotate`, of pairs (2i, 2i + 1)."""
    dim = cos_T1R.shape[-1]
    halves = torch.cat((x_TND[..., 0:dim:2], x_TND[..., 1:dim:2]), -1)
    turned = torch.stack(_rotate(halves, cos_T1R, sin_T1R).chunk(2, -1), -1).flatten(-2)
    return torch.cat((turned, x_TND[..., dim:]), -1)
