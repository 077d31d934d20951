"""Queries and keys normed and rotated by their positions, keys and values written to their slots: one launch.

    x = rms_norm(head)                        if there are weights; rounded to its dtype, as if it were stored
    (a, b) -> (a cos - b sin, b cos + a sin)  for each pair among the first R values of x

RMS norm: arXiv 1910.07467; rotary embedding: arXiv 2104.09864. Arithmetic is in float32.

Layout: q [T, Q, D], k and v [T, G, D], slices of one product or not -> out [T, Q, D]; pools
[pages, G, page_size, D]. Of inputs and pools D is dense. The Q + 2G heads of a token are one list: queries,
keys and values differ in where they come from, where they go, and whether they turn.
Grid: one program a block of `HEADS` heads of a token, the blocks of a token side by side.

The two values of a half-split pair come in two tiles, and so meet in one thread; interleaved pairs come in
one tile that is split in registers. Every head of a program loads its own cosines: the L1 has them, and in
the layout of the heads' tile they need not pass through shared memory.

Shape suffixes: as in `reference`; N heads of a program, F = R / 2 pairs, E values at which pairs are loaded:
all R of interleaved pairs, the first F of half-split ones.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.debug import check_slots
from headway_kernels.launch import DTYPES, FUSED, mismatch
from headway_kernels.tiles import heads_a_program, padded


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
    out_TQD: Tensor | None = None,
    check_values: bool = False,
) -> Tensor:
    """As `reference.kv_write`; the queries come back contiguous, in `out_TQD` if it is given.

    check_values: look at the slots first, which waits for the device (`debug`).

    Of `cos_TR` (float32) the first half is read, of `sin_TR` the second. Raises ValueError, naming the
    argument, for shapes, dtypes, strides and devices that do not fit.
    """
    if out_TQD is None:
        out_TQD = torch.empty(q_TQD.shape, dtype=q_TQD.dtype, device=q_TQD.device)
    _check(q_TQD, k_TGD, v_TGD, slots_T, k_pool, v_pool, out_TQD)
    rotated = _check_optional(q_TQD, cos_TR, sin_TR, q_norm_D, k_norm_D)
    if check_values:
        check_slots("kv_write", "slots", slots_T, k_pool.shape[0] * k_pool.shape[2])
    num_tokens, num_q_heads, head_dim = q_TQD.shape
    _, num_kv_heads, page_size, _ = k_pool.shape
    num_heads = num_q_heads + 2 * num_kv_heads
    heads, num_warps = heads_a_program(head_dim, rotated, num_heads, q_TQD.dtype)
    if num_tokens:
        _kv_write_kernel[(num_tokens * triton.cdiv(num_heads, heads),)](
            q_TQD,
            k_TGD,
            v_TGD,
            out_TQD,
            k_pool,
            v_pool,
            cos_TR,
            sin_TR,
            q_norm_D,
            k_norm_D,
            slots_T,
            *q_TQD.stride()[:2],
            *k_TGD.stride()[:2],
            *v_TGD.stride()[:2],
            *k_pool.stride()[:3],
            *v_pool.stride()[:3],
            0 if cos_TR is None else cos_TR.stride(0),
            0 if sin_TR is None else sin_TR.stride(0),
            eps,
            Q=num_q_heads,
            G=num_kv_heads,
            D=head_dim,
            R=rotated,
            PAGE=page_size,
            INTERLEAVED=interleaved,
            HEADS=heads,
            PAIRS=padded(rotated // 2, 1),
            REST=padded(head_dim - rotated, 1),
            num_warps=num_warps,
            **FUSED,
        )
    return out_TQD


@triton.jit(do_not_specialize=["slots_ptr"])  # a part of a longer tensor, wherever it begins
def _kv_write_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    k_pool_ptr,
    v_pool_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    slots_ptr,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    k_pool_page,
    k_pool_head,
    k_pool_slot,
    v_pool_page,
    v_pool_head,
    v_pool_slot,
    cos_token,
    sin_token,
    eps,
    Q: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    PAGE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
):
    num_blocks: tl.constexpr = tl.cdiv(Q + 2 * G, HEADS)
    token = (tl.program_id(0) // num_blocks).to(tl.int64)
    head_N = (tl.program_id(0) % num_blocks * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    real_N1 = (head_N < Q + 2 * G)[:, None]
    is_q_N1, is_v_N1 = (head_N < Q)[:, None], (head_N >= Q + G)[:, None]
    k_N, v_N = head_N - Q, head_N - (Q + G)  # the KV head, where it is one of keys, or of values
    slot = tl.load(slots_ptr + token)
    page, offset = slot // PAGE, slot % PAGE
    q_from_N = q_ptr + token * q_token + head_N * q_head
    k_from_N = k_ptr + token * k_token + k_N * k_head
    v_from_N = v_ptr + token * v_token + v_N * v_head
    q_to_N = out_ptr + (token * Q + head_N) * D
    k_to_N = k_pool_ptr + page * k_pool_page + offset * k_pool_slot + k_N * k_pool_head
    v_to_N = v_pool_ptr + page * v_pool_page + offset * v_pool_slot + v_N * v_pool_head

    # The values that turn, as pairs (a, b), and the rest.
    if R > 0:
        d_E = tl.arange(0, 2 * PAIRS if INTERLEAVED else PAIRS)
        real_NE = real_N1 & (d_E < (R if INTERLEAVED else R // 2))
        from_NE = _choose(is_q_N1, is_v_N1, q_from_N, k_from_N, v_from_N, d_E)
        to_NE = _choose(is_q_N1, is_v_N1, q_to_N, k_to_N, v_to_N, d_E)
        a_NF, b_NF = _load_pairs(from_NE, real_NE, R, HEADS, PAIRS, INTERLEAVED)
        x_NF, y_NF = a_NF, b_NF
    if R < D:
        d_D = R + tl.arange(0, REST)
        real_ND = real_N1 & (d_D < D)
        from_ND = _choose(is_q_N1, is_v_N1, q_from_N, k_from_N, v_from_N, d_D)
        to_ND = _choose(is_q_N1, is_v_N1, q_to_N, k_to_N, v_to_N, d_D)
        rest_ND = tl.load(from_ND, mask=real_ND, other=0.0)
        z_ND = rest_ND
    if q_norm_ptr is not None:
        squares_N = tl.zeros((HEADS,), tl.float32)
        if R > 0:
            squares_N += _squares(a_NF) + _squares(b_NF)
        if R < D:
            squares_N += _squares(rest_ND)
        factor_N1 = tl.rsqrt(squares_N / D + eps)[:, None]
        if R > 0:
            weight_NE = tl.where(is_q_N1, q_norm_ptr + d_E, k_norm_ptr + d_E)
            a_weight_NF, b_weight_NF = _load_pairs(weight_NE, real_NE, R, HEADS, PAIRS, INTERLEAVED)
            x_NF, y_NF = _scaled(a_NF, factor_N1, a_weight_NF), _scaled(b_NF, factor_N1, b_weight_NF)
        if R < D:
            weight_ND = tl.where(is_q_N1, q_norm_ptr + d_D, k_norm_ptr + d_D)
            z_ND = _scaled(rest_ND, factor_N1, tl.load(weight_ND, mask=real_ND, other=0.0))
    if R > 0:
        f_NF = tl.zeros((HEADS, 1), tl.int32) + tl.arange(0, PAIRS)
        cos_NF = tl.load(cos_ptr + token * cos_token + f_NF, mask=f_NF < R // 2, other=0.0)
        sin_NF = tl.load(sin_ptr + token * sin_token + R // 2 + f_NF, mask=f_NF < R // 2, other=0.0)
        x_NF, y_NF = x_NF.to(tl.float32), y_NF.to(tl.float32)
        x_NF, y_NF = x_NF * cos_NF - y_NF * sin_NF, y_NF * cos_NF + x_NF * sin_NF
        x_NF = tl.where(is_v_N1, a_NF, x_NF.to(a_NF.dtype))
        y_NF = tl.where(is_v_N1, b_NF, y_NF.to(b_NF.dtype))
        _store_pairs(to_NE, real_NE, x_NF, y_NF, R, INTERLEAVED)
    if R < D:
        tl.store(to_ND, tl.where(is_v_N1, rest_ND, z_ND), mask=real_ND)


@triton.jit
def _choose(is_q_N1, is_v_N1, q_N, k_N, v_N, d_D):
    """Pointers to the values `d_D` of each head -> [N, D].

    Chosen a head, before `d_D` is added, they would lose what the compiler of Triton 3.9 knows of their
    alignment, and values would be moved one by one instead of 16 bytes at once.
    """
    kv_ND = tl.where(is_v_N1, v_N[:, None] + d_D, k_N[:, None] + d_D)
    return tl.where(is_q_N1, q_N[:, None] + d_D, kv_ND)


@triton.jit
def _load_pairs(
    ptr_NE, real_NE, R: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """The first values of the pairs, and the second ones -> two tiles [N, F]."""
    first_NF = tl.load(ptr_NE, mask=real_NE, other=0.0)
    if INTERLEAVED:
        first_NF, second_NF = tl.split(tl.reshape(first_NF, (HEADS, PAIRS, 2)))
    else:
        second_NF = tl.load(ptr_NE + R // 2, mask=real_NE, other=0.0)
    return first_NF, second_NF


@triton.jit
def _store_pairs(ptr_NE, real_NE, first_NF, second_NF, R: tl.constexpr, INTERLEAVED: tl.constexpr):
    if INTERLEAVED:
        tl.store(ptr_NE, tl.interleave(first_NF, second_NF), mask=real_NE)
    else:
        tl.store(ptr_NE, first_NF, mask=real_NE)
        tl.store(ptr_NE + R // 2, second_NF, mask=real_NE)


@triton.jit
def _squares(x_ND):
    """The sum of squares of each head's values."""
    wide_ND = x_ND.to(tl.float32)
    return tl.sum(wide_ND * wide_ND, 1)


@triton.jit
def _scaled(x_ND, factor_N1, weight_ND):
    return (x_ND.to(tl.float32) * factor_N1 * weight_ND.to(tl.float32)).to(x_ND.dtype)


def _check(
    q: Tensor, k: Tensor, v: Tensor, slots: Tensor, k_pool: Tensor, v_pool: Tensor, out: Tensor
) -> None:
    """Raise ValueError where the kernel would read or write something else than is meant."""
    if q.ndim != 3 or q.dtype not in DTYPES or q.stride(2) != 1:
        raise mismatch(
            "kv_write", "q", "[tokens, heads, head_dim] in a 16- or 32-bit float, head_dim dense", q
        )
    num_tokens, _, head_dim = q.shape
    if k_pool.ndim != 4:
        raise mismatch("kv_write", "k_pool", f"[pages, kv_heads, page_size, {head_dim}]", k_pool)
    num_pages, num_kv_heads, page_size, _ = k_pool.shape
    for name, heads, pool in (("k", k, k_pool), ("v", v, v_pool)):
        _expect(q, name, heads, (num_tokens, num_kv_heads, head_dim), q.dtype)
        _expect(q, f"{name}_pool", pool, (num_pages, num_kv_heads, page_size, head_dim), q.dtype)
    _expect(q, "slots", slots, (num_tokens,), torch.int64)
    _expect(q, "out", out, tuple(q.shape), q.dtype)
    if not out.is_contiguous():
        raise mismatch("kv_write", "out", "contiguous", out)


def _check_optional(
    q: Tensor, cos: Tensor | None, sin: Tensor | None, q_norm: Tensor | None, k_norm: Tensor | None
) -> int:
    """The number of rotated values of a head."""
    num_tokens, _, head_dim = q.shape
    for names, pair in (("cos and sin", (cos, sin)), ("q_norm and k_norm", (q_norm, k_norm))):
        if (pair[0] is None) != (pair[1] is None):
            raise ValueError(f"kv_write: {names} must be given together, got one of them")
    if q_norm is not None and k_norm is not None:
        _expect(q, "q_norm", q_norm, (head_dim,), q_norm.dtype)
        _expect(q, "k_norm", k_norm, (head_dim,), q_norm.dtype)
    if cos is None or sin is None:
        return 0
    rotated = cos.shape[-1]
    if rotated % 2 or rotated > head_dim:
        raise mismatch("kv_write", "cos", f"of an even number of values, {head_dim} at most", cos)
    _expect(q, "cos", cos, (num_tokens, rotated), torch.float32)
    _expect(q, "sin", sin, (num_tokens, rotated), torch.float32)
    return rotated


def _expect(q: Tensor, name: str, found: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    dense = found.shape[-1:] == (1,) or found.stride(-1) == 1
    if found.shape != shape or found.dtype != dtype or found.device != q.device or not dense:
        raise mismatch(
            "kv_write", name, f"{dtype} {list(shape)} on {q.device}, its last dimension dense", found
        )
