"""`flash_prefill` and `flash_prefill_dense`, `paged_decode` with its plan, and `merge`."""

from functools import partial
from typing import Any

import torch

from headway_kernels.decode_plan import plan_decode
from headway_kernels.flash_prefill import flash_prefill
from headway_kernels.flash_prefill_dense import flash_prefill_dense
from headway_kernels.merge import merge
from headway_kernels.paged_decode import paged_decode
from headway_kernels.tiles import Tiles
from launches import Launch

NUM_PAGES = 256
EVERYTHING = {"window": 64, "softcap": 20.0}
ALIKE = Tiles(rows=128, positions=64, num_warps=8, num_stages=2)  # what does not suit roles


def _inputs(
    device: str, num_tokens: int, group: int, head_dim: int, dtype: torch.dtype, page_size: int = 16
) -> tuple[Any, ...]:
    q = torch.randn(num_tokens, 2 * group, head_dim, device=device).to(dtype)
    pools = [torch.randn(NUM_PAGES, 2, page_size, head_dim, device=device).to(dtype) for _ in range(2)]
    return q, *pools


def _prefill(
    device: str, *, head_dim: int, dtype: torch.dtype = torch.bfloat16, tokens: int = 512, **options: Any
) -> Launch:
    q, k_pool, v_pool = _inputs(device, tokens, 4, head_dim, dtype)
    table = torch.arange(NUM_PAGES, dtype=torch.int32, device=device)[None]
    starts = torch.tensor([0, tokens], dtype=torch.int32, device=device)
    lens = torch.tensor([tokens], dtype=torch.int32, device=device)
    return lambda: flash_prefill(
        q,
        k_pool,
        v_pool,
        page_table_SP=table,
        query_starts=starts,
        context_lens_S=lens,
        lengths=[(tokens, tokens)],
        group_bounds=(0, 4, 8),
        scale=0.1,
        **options,
    )


def _dense(device: str, *, head_dim: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Launch:
    """Two sequences, the second one's keys at an odd row; all of them parts of one product."""
    qkv = torch.randn(512, 8 + 2 + 2, head_dim, device=device).to(dtype)
    q, k, v = qkv.split((8, 2, 2), 1)
    starts = torch.tensor([0, 211, 512], dtype=torch.int32, device=device)
    return lambda: flash_prefill_dense(
        q,
        k,
        v,
        query_starts=starts,
        key_starts=starts,
        lengths=[(211, 211), (301, 301)],
        group_bounds=(0, 4, 8),
        scale=0.1,
        **options,
    )


def _decode(
    device: str,
    *,
    head_dim: int,
    group: int = 4,
    dtype: torch.dtype = torch.bfloat16,
    num_queries: int = 1,
    page_size: int = 16,
    **options: Any,
) -> Launch:
    q, k_pool, v_pool = _inputs(device, 4 * num_queries, group, head_dim, dtype, page_size)
    most = 56 * page_size + 4
    lens = torch.tensor([1, most, 17, 16 * page_size], dtype=torch.int32, device=device)
    table = torch.arange(NUM_PAGES, dtype=torch.int32, device=device).view(4, 64)

    def launch() -> Any:
        plan = plan_decode(
            lens,
            num_kv_heads=2,
            group=group,
            head_dim=head_dim,
            dtype=dtype,
            num_queries=num_queries,
            window=options.get("window"),
        )
        return paged_decode(
            q,
            k_pool,
            v_pool,
            page_table_BP=table,
            context_lens_B=lens,
            max_context_len=most,
            group_bounds=(0, group, 2 * group),
            scale=0.1,
            num_queries=num_queries,
            plan=plan,
            **options,
        )

    return launch


def _merge(device: str) -> Launch:
    parts, lse = torch.randn(3, 5, 8, 128, device=device), torch.randn(3, 5, 8, device=device)
    return lambda: merge(parts, lse)


LAUNCHES = {
    "prefill, 64 values": partial(_prefill, head_dim=64),
    "prefill, 128 values": partial(_prefill, head_dim=128),
    "prefill, 64 values, float16, window and softcap": partial(
        _prefill, head_dim=64, dtype=torch.float16, **EVERYTHING
    ),
    "prefill, 128 values, all warps alike": partial(_prefill, head_dim=128, tile=ALIKE),
    "prefill, 192 values, window and softcap": partial(_prefill, head_dim=192, **EVERYTHING),
    "prefill, 72 values": partial(_prefill, head_dim=72),
    "prefill, 200 values, window and softcap": partial(_prefill, head_dim=200, **EVERYTHING),
    "prefill, 80 values, float32": partial(_prefill, head_dim=80, dtype=torch.float32),
    "prefill, 128 values, bidirectional": partial(_prefill, head_dim=128, causal=False),
    "prefill, 192 values, bidirectional, window and softcap": partial(
        _prefill, head_dim=192, causal=False, **EVERYTHING
    ),
    "dense, 64 values, bidirectional": partial(_dense, head_dim=64, causal=False),
    "dense, 72 values": partial(_dense, head_dim=72),
    "dense, 80 values": partial(_dense, head_dim=80),
    "dense, 128 values": partial(_dense, head_dim=128),
    "dense, 192 values": partial(_dense, head_dim=192),
    "dense, 128 values, all warps alike": partial(_dense, head_dim=128, tile=ALIKE),
    "decode, 128 values": partial(_decode, head_dim=128),
    "decode, 64 values, 71 heads of one": partial(_decode, head_dim=64, group=71),
    "decode, 256 values, window and softcap": partial(_decode, head_dim=256, **EVERYTHING),
    "decode, 72 values": partial(_decode, head_dim=72),
    "decode, 256 values, pages of 8": partial(_decode, head_dim=256, page_size=8),
    "decode, 128 values, 71 heads of one, pages of 8": partial(_decode, head_dim=128, group=71, page_size=8),
    "decode, 128 values, float32": partial(_decode, head_dim=128, dtype=torch.float32),
    "decode, 128 values, 4 tokens a sequence": partial(_decode, head_dim=128, num_queries=4),
    "decode, 64 values, 71 heads of one, 2 tokens a sequence, window and softcap": partial(
        _decode, head_dim=64, group=71, num_queries=2, **EVERYTHING
    ),
    "merge": _merge,
}
