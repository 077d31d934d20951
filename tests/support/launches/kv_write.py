"""`kv_write` of Llama 3.1 8B, Falcon 7B, Qwen3, GPT-NeoX and GPT-J, and of heads that are awkward."""

from functools import partial
from typing import Any

import torch

from headway_kernels.kv_write import kv_write
from launches import Launch

PAGE_SIZE = 16


def _launch(
    device: str,
    *,
    heads: tuple[int, int],
    head_dim: int,
    rotated: int | None = None,
    tokens: int = 256,
    dtype: torch.dtype = torch.bfloat16,
    norm: torch.dtype | None = None,
    interleaved: bool = False,
) -> Launch:
    """heads: of queries, and of keys. rotated: all of a head's values, if it is not said."""
    num_q_heads, num_kv_heads = heads
    qkv = torch.randn(tokens, num_q_heads + 2 * num_kv_heads, head_dim, device=device).to(dtype)
    pools = [
        torch.zeros(tokens // PAGE_SIZE, num_kv_heads, PAGE_SIZE, head_dim, dtype=dtype, device=device)
        for _ in range(2)
    ]
    angle = torch.randn(tokens, (head_dim if rotated is None else rotated) // 2, device=device)
    weights = None if norm is None else torch.rand(head_dim, device=device).to(norm)
    arguments: dict[str, Any] = {
        "cos_TR": torch.cat((angle, angle), 1).cos(),
        "sin_TR": torch.cat((-angle, angle), 1).sin(),
        "slots_T": torch.randperm(tokens, device=device),
        "k_pool": pools[0],
        "v_pool": pools[1],
        "interleaved": interleaved,
        "q_norm_D": weights,
        "k_norm_D": weights,
        "eps": 1e-6,
    }
    if rotated == 0:
        arguments |= {"cos_TR": None, "sin_TR": None}

    def launch() -> Any:
        q, k, v = qkv.split_with_sizes((num_q_heads, num_kv_heads, num_kv_heads), 1)
        return kv_write(q, k, v, **arguments), *pools

    return launch


LAUNCHES = {
    "128 values, 32/8 heads": partial(_launch, heads=(32, 8), head_dim=128),
    "64 values, 71/1 heads": partial(_launch, heads=(71, 1), head_dim=64),
    "128 values, normed": partial(_launch, heads=(32, 8), head_dim=128, norm=torch.bfloat16),
    "256 values, normed by wider weights": partial(_launch, heads=(8, 4), head_dim=256, norm=torch.float32),
    "96 values, 24 rotated": partial(_launch, heads=(64, 64), head_dim=96, rotated=24, dtype=torch.float16),
    "256 values, 64 rotated, interleaved": partial(
        _launch, heads=(16, 16), head_dim=256, rotated=64, interleaved=True
    ),
    "80 values, not rotated, float32": partial(
        _launch, heads=(32, 32), head_dim=80, rotated=0, dtype=torch.float32
    ),
}
