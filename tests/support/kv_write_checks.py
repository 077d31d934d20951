"""Run `kv_write` on poisoned memory and judge all that it wrote: shared by interpreter and GPU tests."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attention_cases import assert_as_exact
from headway_kernels import reference

EPS = 1e-6


def check_kv_write(
    kv_write: Callable[..., Tensor],
    num_tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    rotated: int | None,
    *,
    interleaved: bool = False,
    norm: torch.dtype | None = None,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """heads: of queries, and of keys. rotated: values of a head; None without cosines and sines. norm: the
    dtype of its weights.

    Pools lie side by side in one tensor, and heads in one product, so that nothing but head_dim is dense.
    """
    num_q_heads, num_kv_heads = heads
    qkv_TXD = torch.randn(num_tokens, num_q_heads + 2 * num_kv_heads, head_dim, device=device).to(dtype)
    given = qkv_TXD.clone()
    q_TQD, k_TGD, v_TGD = qkv_TXD.split_with_sizes((num_q_heads, num_kv_heads, num_kv_heads), 1)
    num_pages = -(-num_tokens // page_size) + 3
    slots_T = torch.randperm(num_pages * page_size, device=device)[:num_tokens]
    weights = [None, None] if norm is None else [_weight(head_dim, norm, device) for _ in "qk"]
    cos_TR, sin_TR = (None, None) if rotated is None else cos_sin(num_tokens, rotated, device)

    def run(op: Callable[..., Tensor], kind: torch.dtype, **options: Any) -> tuple[Tensor, Tensor]:
        """(queries, both pools) of the same inputs in `kind`; float64 takes everything in float64."""
        shape = (num_pages, num_kv_heads, 2, page_size, head_dim)
        pools = torch.full(shape, torch.nan, dtype=kind, device=device)
        inputs = [_as(x, kind) for x in (cos_TR, sin_TR, *weights)]
        queries = op(
            q_TQD.to(kind),
            k_TGD.to(kind),
            v_TGD.to(kind),
            cos_TR=inputs[0],
            sin_TR=inputs[1],
            slots_T=slots_T,
            k_pool=pools[:, :, 0],
            v_pool=pools[:, :, 1],
            interleaved=interleaved,
            q_norm_D=inputs[2],
            k_norm_D=inputs[3],
            eps=EPS,
            **options,
        )
        return queries, pools.permute(0, 3, 2, 1, 4).reshape(-1, 2, num_kv_heads, head_dim)

    out_TQD = torch.full((num_tokens, num_q_heads, head_dim), torch.nan, dtype=dtype, device=device)
    found, written = run(kv_write, dtype, out_TQD=out_TQD)
    same, same_written = run(reference.kv_write, dtype)
    exact, exact_written = run(reference.kv_write, torch.float64)
    assert found.data_ptr() == out_TQD.data_ptr()
    assert_as_exact(found, same, exact)
    assert_as_exact(written[slots_T, 0], same_written[slots_T, 0], exact_written[slots_T, 0])
    assert torch.equal(written[slots_T, 1], v_TGD)
    untouched = torch.ones(num_pages * page_size, dtype=torch.bool, device=device)
    untouched[slots_T] = False
    assert bool(written[untouched].isnan().all()), "a slot that is not of this step was written"
    assert torch.equal(qkv_TXD, given), "the inputs were changed"


def cos_sin(num_tokens: int, rotated: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """(cos_TR, sin_TR) of random angles, scaled as some rotary embeddings scale them."""
    angle_TF = 100 * torch.randn(num_tokens, rotated // 2, device=device)
    cos_TR, sin_TR = torch.cat((angle_TF, angle_TF), 1).cos(), torch.cat((-angle_TF, angle_TF), 1).sin()
    return 1.2 * cos_TR, 1.2 * sin_TR


def _weight(head_dim: int, dtype: torch.dtype, device: str) -> Tensor:
    return (1 + torch.randn(head_dim, device=device) / 3).to(dtype)


def _as(x: Tensor | None, kind: torch.dtype) -> Tensor | None:
    """Cosines, sines and weights keep their dtype but for float64."""
    return x if x is None or kind != torch.float64 else x.double()
