"""Attention kernels beside PyTorch's own backends and FlashInfer, on one GPU, in one run.

Caches are cold: prefill writes a buffer larger than the L2 before each run, decode goes round through more
pools than the L2 holds, with one plan for all, as a step's layers do. PyTorch's backends take dense K and V.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headway.bench.attention_peers import BACKENDS, FLASHINFER, flashinfer_decode, sdpa
from headway.bench.contest import Contender, contest
from headway_kernels import gpu

PAGE_SIZE = 16
COLD_BYTES = 512 << 20  # many times any L2
DENSE, PAGED, ONE_PAGE = "ours, dense", f"ours, pages of {PAGE_SIZE}", "ours, one page"
PREFILL_NAMES = (DENSE, PAGED, ONE_PAGE, *BACKENDS)
DECODE_NAMES = (PAGED, *BACKENDS, FLASHINFER)


@dataclass(frozen=True, kw_only=True)
class PrefillRow:
    head_dim: int
    num_q_heads: int
    num_kv_heads: int
    num_tokens: int
    window: int | None = None
    num_cached: int = 0

    @property
    def num_keys(self) -> int:
        return self.num_cached + self.num_tokens

    @property
    def flops(self) -> int:
        """Two products of a multiply and an add for each visible pair of positions."""
        pairs = self._pairs(self.num_keys) - self._pairs(self.num_cached)
        return 4 * pairs * self.num_q_heads * self.head_dim

    def _pairs(self, num_tokens: int) -> int:
        seen = min(self.window or num_tokens, num_tokens)
        return seen * (seen + 1) // 2 + (num_tokens - seen) * seen

    def tflops(self, us: float | None) -> float | None:
        return None if us is None else self.flops / us / 1e6

    def __str__(self) -> str:
        window = f", window {self.window}" if self.window else ""
        cached = f" after {self.num_cached}" if self.num_cached else ""
        return f"D {self.head_dim}, {self.num_q_heads}/{self.num_kv_heads}, {self.num_tokens}{cached}{window}"


@dataclass(frozen=True, kw_only=True)
class DecodeRow:
    head_dim: int
    num_q_heads: int
    num_kv_heads: int
    lengths: tuple[int, ...]

    @property
    def kv_bytes(self) -> int:
        return sum(self.lengths) * self.num_kv_heads * self.head_dim * 4

    def __str__(self) -> str:
        kinds = sorted(set(self.lengths), reverse=True)
        batch = " + ".join(f"{self.lengths.count(length)} x {length}" for length in kinds)
        return f"D {self.head_dim}, {self.num_q_heads}/{self.num_kv_heads}, {batch}"


def _prefill(d: int, q: int, kv: int, tokens: int, window: int | None = None, cached: int = 0) -> PrefillRow:
    return PrefillRow(
        head_dim=d, num_q_heads=q, num_kv_heads=kv, num_tokens=tokens, window=window, num_cached=cached
    )


def _decode(d: int, q: int, kv: int, *batches: tuple[int, int]) -> DecodeRow:
    lengths = tuple(length for number, length in batches for _ in range(number))
    return DecodeRow(head_dim=d, num_q_heads=q, num_kv_heads=kv, lengths=lengths)


PREFILL = (
    *(_prefill(128, 32, 8, tokens) for tokens in (2048, 4096, 8192, 16384)),
    _prefill(64, 32, 8, 8192),
    _prefill(64, 71, 1, 8192),
    _prefill(128, 32, 32, 8192),
    _prefill(128, 32, 8, 16384, 4096),
    _prefill(128, 32, 8, 2048, cached=14336),
)
DECODE = (
    *(_decode(128, 32, 8, batch) for batch in ((1, 32768), (1, 4096), (8, 8192), (32, 4096), (64, 4096))),
    _decode(128, 32, 8, (256, 1024)),
    _decode(128, 32, 8, (1, 65536), (63, 1024)),
    _decode(128, 32, 32, (1, 32768)),
    _decode(128, 32, 32, (64, 4096)),
    *(_decode(64, 71, 1, batch) for batch in ((1, 32768), (8, 8192), (64, 4096), (256, 1024))),
)


def prefill_us(row: PrefillRow, repeats: int) -> dict[str, float]:
    """Microseconds of each contender: ours over rows without pages (dense), over small ones and over one
    that holds all, and PyTorch's.
    """
    q_TQD, k_GLD, v_GLD = (
        _random(row.num_tokens, row.num_q_heads, row.head_dim),
        *(_random(row.num_kv_heads, row.num_keys, row.head_dim) for _ in range(2)),
    )
    contenders = {
        DENSE: _our_dense(row, q_TQD, k_GLD, v_GLD),
        PAGED: _our_prefill(row, q_TQD, k_GLD, v_GLD, PAGE_SIZE),
        ONE_PAGE: _our_prefill(row, q_TQD, k_GLD, v_GLD, row.num_keys),
    }
    if row.window is None and not row.num_cached:
        contenders |= sdpa(q_TQD.transpose(0, 1)[None].contiguous(), k_GLD[None], v_GLD[None], causal=True)
    cold = torch.empty(COLD_BYTES, dtype=torch.uint8, device="cuda")
    return contest(contenders, repeats, cold.zero_)


def decode_us(row: DecodeRow, repeats: int) -> dict[str, float]:
    """Microseconds a layer of each contender; PyTorch's where all contexts have the same length.

    Ours plans on the device, within the time.
    """
    num_layers = max(2, min(32, -(-COLD_BYTES // row.kv_bytes)))
    num_pages = sum(row.lengths) // PAGE_SIZE
    shape = (num_pages, row.num_kv_heads, PAGE_SIZE, row.head_dim)
    pools = [(_random(*shape), _random(*shape)) for _ in range(num_layers)]
    q_BQD = _random(len(row.lengths), row.num_q_heads, row.head_dim)
    table_BP = _page_table(row.lengths, num_pages)
    lens_B = torch.tensor(row.lengths, dtype=torch.int32, device="cuda")
    group = row.num_q_heads // row.num_kv_heads

    def step() -> None:
        plan = gpu.plan_decode(
            lens_B, num_kv_heads=row.num_kv_heads, group=group, head_dim=row.head_dim, dtype=q_BQD.dtype
        )
        for k_pool, v_pool in pools:
            gpu.paged_decode(
                q_BQD,
                k_pool,
                v_pool,
                page_table_BP=table_BP,
                context_lens_B=lens_B,
                max_context_len=max(row.lengths),
                group_bounds=range(0, row.num_q_heads + 1, group),
                scale=row.head_dim**-0.5,
                plan=plan,
            )

    steps: dict[str, Contender] = {PAGED: step}
    steps |= flashinfer_decode(q_BQD, pools, page_table_BP=table_BP, lengths=row.lengths)
    if len(set(row.lengths)) == 1:
        dense = (len(row.lengths), row.num_kv_heads, row.lengths[0], row.head_dim)
        layers = [sdpa(q_BQD[:, :, None], k.view(dense), v.view(dense), causal=False) for k, v in pools]
        for name in layers[0]:
            steps[name] = lambda name=name: [layer[name]() for layer in layers]  # type: ignore[misc]
    return {name: us / num_layers for name, us in contest(steps, repeats).items()}


def _our_prefill(row: PrefillRow, q_TQD: Tensor, k_GLD: Tensor, v_GLD: Tensor, page_size: int) -> Contender:
    num_pages = row.num_keys // page_size
    table_1P = _page_table((row.num_keys,), num_pages, page_size)
    starts = torch.tensor([0, row.num_tokens], dtype=torch.int32, device="cuda")
    context_lens = torch.tensor([row.num_keys], dtype=torch.int32, device="cuda")
    pools = []
    for dense_GLD in (k_GLD, v_GLD):
        pool = torch.empty(
            num_pages, row.num_kv_heads, page_size, row.head_dim, dtype=q_TQD.dtype, device="cuda"
        )
        pool[table_1P[0].long()] = dense_GLD.view(row.num_kv_heads, num_pages, page_size, -1).transpose(0, 1)
        pools.append(pool)
    return lambda: gpu.flash_prefill(
        q_TQD,
        pools[0],
        pools[1],
        page_table_SP=table_1P,
        query_starts=starts,
        context_lens_S=context_lens,
        lengths=[(row.num_tokens, row.num_keys)],
        group_bounds=range(0, row.num_q_heads + 1, row.num_q_heads // row.num_kv_heads),
        scale=row.head_dim**-0.5,
        window=row.window,
    )


def _our_dense(row: PrefillRow, q_TQD: Tensor, k_GLD: Tensor, v_GLD: Tensor) -> Contender:
    k_TGD, v_TGD = (dense_GLD.transpose(0, 1).contiguous() for dense_GLD in (k_GLD, v_GLD))
    starts, key_starts = (
        torch.tensor([0, number], dtype=torch.int32, device="cuda")
        for number in (row.num_tokens, row.num_keys)
    )
    return lambda: gpu.flash_prefill_dense(
        q_TQD,
        k_TGD,
        v_TGD,
        query_starts=starts,
        key_starts=key_starts,
        lengths=[(row.num_tokens, row.num_keys)],
        group_bounds=range(0, row.num_q_heads + 1, row.num_q_heads // row.num_kv_heads),
        scale=row.head_dim**-0.5,
        window=row.window,
    )


def _page_table(lengths: Sequence[int], num_pages: int, page_size: int = PAGE_SIZE) -> Tensor:
    """Pages in random order, no length leaving a page part-filled."""
    counts = [length // page_size for length in lengths]
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    for row, pages in enumerate(torch.split(torch.randperm(num_pages).int(), counts)):
        table[row, : len(pages)] = pages
    return table.cuda()


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")
