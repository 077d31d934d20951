"""Run an attention kernel on poisoned memory and judge every row: shared by interpreter and GPU tests."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from attention_cases import (
    NOTHING,
    Beside,
    Cache,
    Results,
    assert_as_exact,
    make_cache,
    naive,
    options_of,
    part_of_wider,
)

SCALE = 0.17
Launch = Callable[..., Tensor]


def check_prefill(
    flash_prefill: Launch,
    lengths: Sequence[tuple[int, int]],
    bounds: Sequence[int],
    variant: str = "plain",
    *,
    head_dim: int = 64,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    causal: bool = True,
    far: int | None = None,
    beside: tuple[Beside, Beside] = NOTHING,
    **settings: Any,
) -> None:
    """lengths: (new tokens, tokens with them) of each sequence. far: a window that leaves out nothing.
    beside: of the queries and of their results, which are parts of wider rows.
    """
    cache = _cache([context for _, context in lengths], bounds, page_size, head_dim, dtype, device)
    starts = torch.tensor([0, *(count for count, _ in lengths)]).cumsum(0).int()
    q_TQD = _queries(int(starts[-1]), bounds[-1], head_dim, beside[0], dtype, device)
    results = Results(q_TQD.shape, beside[1], dtype, device)
    options = options_of(variant, bounds[-1], dtype, device) | {"causal": causal}
    if window := options.get("window"):  # pages that have left it are freed
        for row, (count, context) in enumerate(lengths):
            cache.table[row, : max(context - count - window + 1, 0) // page_size] = cache.nobodys
    found = flash_prefill(
        q_TQD,
        cache.k_pool,
        cache.v_pool,
        page_table_SP=cache.table,
        query_starts=starts.to(device),
        context_lens_S=torch.tensor([context for _, context in lengths], dtype=torch.int32, device=device),
        lengths=lengths,
        group_bounds=bounds,
        scale=SCALE,
        out_TQD=results.out,
        lse_TQ=results.lse,
        **options | ({} if far is None else {"window": far}),
        **settings,
    )
    assert found is results.out
    for row, (start, end) in enumerate(pairwise(starts.tolist())):
        part = slice(start, end)
        _judge(results, part, q_TQD, cache.keys[row], cache.values[row], bounds, options)
    results.assert_alone()


def check_prefill_dense(
    flash_prefill_dense: Launch,
    lengths: Sequence[tuple[int, int]],
    bounds: Sequence[int],
    variant: str = "plain",
    *,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    causal: bool = True,
    beside: tuple[Beside, Beside] = NOTHING,
    **settings: Any,
) -> None:
    """lengths: (queries, keys) of each sequence; beside: as in `check_prefill`. Keys and values are parts of
    wider rows that hold NaN besides, as do rows before the first and behind the last.
    """
    starts, key_starts = (
        torch.tensor([0, *(pair[side] for pair in lengths)]).cumsum(0).int() for side in (0, 1)
    )
    num_keys, num_heads = int(key_starts[-1]), len(bounds) - 1
    wide = torch.full((num_keys + 80, 2, num_heads + 1, head_dim), torch.nan, device=device).to(dtype)
    wide[40 : num_keys + 40, :, :num_heads] = torch.randn(num_keys, 2, num_heads, head_dim, device=device).to(
        dtype
    )
    k_TGD, v_TGD = wide[40 : num_keys + 40, :, :num_heads].unbind(1)
    q_TQD = _queries(int(starts[-1]), bounds[-1], head_dim, beside[0], dtype, device)
    results = Results(q_TQD.shape, beside[1], dtype, device)
    options = options_of(variant, bounds[-1], dtype, device) | {"causal": causal}
    found = flash_prefill_dense(
        q_TQD,
        k_TGD,
        v_TGD,
        query_starts=starts.to(device),
        key_starts=key_starts.to(device),
        lengths=lengths,
        group_bounds=bounds,
        scale=SCALE,
        out_TQD=results.out,
        lse_TQ=results.lse,
        **options,
        **settings,
    )
    assert found is results.out
    spans = zip(pairwise(starts.tolist()), pairwise(key_starts.tolist()), strict=True)
    for (start, end), (key_start, key_end) in spans:
        part, keys = slice(start, end), slice(key_start, key_end)
        _judge(results, part, q_TQD, k_TGD[keys], v_TGD[keys], bounds, options)
    results.assert_alone()


def check_decode(
    paged_decode: Launch,
    plan_decode: Callable[..., Any],
    lengths: Sequence[int],
    bounds: Sequence[int],
    variant: str = "plain",
    *,
    head_dim: int = 64,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    num_queries: int = 1,
    check_values: bool = False,
    beside: tuple[Beside, Beside] = NOTHING,
    **settings: Any,
) -> None:
    """lengths: of each sequence's context; beside: as in `check_prefill`. `settings` go to the planner."""
    cache = _cache(lengths, bounds, page_size, head_dim, dtype, device)
    q_BQD = _queries(len(lengths) * num_queries, bounds[-1], head_dim, beside[0], dtype, device)
    results = Results(q_BQD.shape, beside[1], dtype, device)
    options = options_of(variant, bounds[-1], dtype, device)
    if window := options.get("window"):  # pages that have left it are freed
        for row, context in enumerate(lengths):
            cache.table[row, : max(context - num_queries - window + 1, 0) // page_size] = cache.nobodys
    context_lens_B = torch.tensor(lengths, dtype=torch.int32, device=device)
    plan = plan_decode(
        context_lens_B,
        num_kv_heads=len(bounds) - 1,
        group=max(high - low for low, high in pairwise(bounds)),
        head_dim=head_dim,
        dtype=dtype,
        num_queries=num_queries,
        window=options.get("window"),
        **settings,
    )
    plan.parts.fill_(torch.nan)
    plan.lse.fill_(torch.nan)
    found = paged_decode(
        q_BQD,
        cache.k_pool,
        cache.v_pool,
        page_table_BP=cache.table,
        context_lens_B=context_lens_B,
        max_context_len=max(lengths),
        group_bounds=bounds,
        scale=SCALE,
        num_queries=num_queries,
        plan=plan,
        out_BQD=results.out,
        lse_BQ=results.lse,
        check_values=check_values,
        **options,
    )
    assert found is results.out
    for row in range(len(lengths)):
        part = slice(row * num_queries, (row + 1) * num_queries)
        _judge(results, part, q_BQD, cache.keys[row], cache.values[row], bounds, options)
    results.assert_alone()


def _queries(
    num_rows: int, num_heads: int, head_dim: int, beside: Beside, dtype: torch.dtype, device: str
) -> Tensor:
    queries, _ = part_of_wider((num_rows, num_heads, head_dim), beside, dtype, device)
    return queries.copy_(torch.randn(queries.shape, device=device))


def _cache(
    lengths: Sequence[int],
    bounds: Sequence[int],
    page_size: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str,
) -> Cache:
    return make_cache(
        lengths,
        num_kv_heads=len(bounds) - 1,
        page_size=page_size,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
    )


def _judge(
    results: Results,
    part: slice,
    q_TQD: Tensor,
    k_LGD: Tensor,
    v_LGD: Tensor,
    bounds: Sequence[int],
    options: dict[str, Any],
) -> None:
    """The rows `part` of the results, and of the queries: those of one sequence."""
    out_TQD, lse_TQ, inputs = results.out[part], results.lse[part], (q_TQD[part], k_LGD, v_LGD)
    exact, exact_lse = naive(*inputs, bounds=bounds, scale=SCALE, dtype=torch.float64, **options)
    plain, _ = naive(*inputs, bounds=bounds, scale=SCALE, dtype=_plain_dtype(out_TQD), **options)
    assert_as_exact(out_TQD, plain.to(out_TQD.dtype), exact)
    torch.testing.assert_close(lse_TQ.double(), exact_lse, atol=1e-5, rtol=1e-5)


def _plain_dtype(out: Tensor) -> torch.dtype:
    """Half precision on a CPU is rounded at the end alone: the stricter measure, and fast."""
    return torch.float32 if out.is_cpu else out.dtype
