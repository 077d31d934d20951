"""What attention means, against float64 step by step: bidirectional, over dense rows, of several queries."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_cases import HEADS, VARIANTS, make_cache, naive, options_of
from headway_kernels import reference

BOUNDS = HEADS["ragged"]
SCALE = 0.3
COUNTS = st.sampled_from([0, 1, 3, 16, 17, 30])


def exact(q_TQD: Tensor, k_LGD: Tensor, v_LGD: Tensor, **options: Any) -> Tensor:
    return naive(q_TQD, k_LGD, v_LGD, bounds=BOUNDS, scale=SCALE, dtype=torch.float64, **options)[0].float()


def starts_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


@settings(max_examples=40, deadline=None)
@given(
    chunks=st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=4),
    variant=st.sampled_from(sorted(VARIANTS)),
    causal=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_prefill_with_and_without_causality(
    chunks: list[tuple[int, int]], variant: str, causal: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    lengths = [(new, new + old) for new, old in chunks]
    cache = make_cache(
        [length for _, length in lengths], num_kv_heads=2, page_size=16, head_dim=8, dtype=torch.float32
    )
    starts = starts_of([new for new, _ in lengths])
    q_TQD = torch.randn(int(starts[-1]), BOUNDS[-1], 8)
    options = options_of(variant, BOUNDS[-1], torch.float32) | {"causal": causal}
    out_TQD = reference.flash_prefill(
        q_TQD,
        cache.k_pool,
        cache.v_pool,
        page_table_SP=cache.table,
        query_starts=starts,
        context_lens_S=torch.tensor([length for _, length in lengths]).int(),
        lengths=lengths,
        group_bounds=BOUNDS,
        scale=SCALE,
        **options,
    )
    for row, (start, end) in enumerate(pairwise(starts.tolist())):
        expected = exact(q_TQD[start:end], cache.keys[row], cache.values[row], **options)
        torch.testing.assert_close(out_TQD[start:end], expected)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=4),
    variant=st.sampled_from(sorted(VARIANTS)),
    causal=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_prefill_over_dense_rows(
    lengths: list[tuple[int, int]], variant: str, causal: bool, seed: int
) -> None:
    """More queries than keys too: the last query stands at the last key, and what sees nothing is zero."""
    torch.manual_seed(seed)
    starts, key_starts = (starts_of([pair[side] for pair in lengths]) for side in (0, 1))
    q_TQD = torch.randn(int(starts[-1]), BOUNDS[-1], 8)
    k_TGD, v_TGD = torch.randn(2, int(key_starts[-1]), 2, 8)
    options = options_of(variant, BOUNDS[-1], torch.float32) | {"causal": causal}
    out_TQD = reference.flash_prefill_dense(
        q_TQD,
        k_TGD,
        v_TGD,
        query_starts=starts,
        key_starts=key_starts,
        lengths=lengths,
        group_bounds=BOUNDS,
        scale=SCALE,
        **options,
    )
    spans = zip(pairwise(starts.tolist()), pairwise(key_starts.tolist()), strict=True)
    for (start, end), (first, last) in spans:
        expected = exact(q_TQD[start:end], k_TGD[first:last], v_TGD[first:last], **options)
        torch.testing.assert_close(out_TQD[start:end], expected)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(COUNTS, min_size=1, max_size=4).filter(any),
    variant=st.sampled_from(sorted(VARIANTS)),
    num_queries=st.integers(2, 8),
    seed=st.integers(0, 2**16),
)
def test_decoding_several_queries_a_sequence(
    lengths: list[int], variant: str, num_queries: int, seed: int
) -> None:
    """A sequence shorter than its queries: those before its start see nothing, and are zero."""
    torch.manual_seed(seed)
    cache = make_cache(lengths, num_kv_heads=2, page_size=16, head_dim=8, dtype=torch.float32)
    q_BQD = torch.randn(len(lengths) * num_queries, BOUNDS[-1], 8)
    options = options_of(variant, BOUNDS[-1], torch.float32)
    out_BQD = reference.paged_decode(
        q_BQD,
        cache.k_pool,
        cache.v_pool,
        page_table_BP=cache.table,
        context_lens_B=torch.tensor(lengths).int(),
        max_context_len=max(lengths),
        group_bounds=BOUNDS,
        scale=SCALE,
        num_queries=num_queries,
        **options,
    )
    for row in range(len(lengths)):
        part = slice(row * num_queries, (row + 1) * num_queries)
        torch.testing.assert_close(
            out_BQD[part], exact(q_BQD[part], cache.keys[row], cache.values[row], **options)
        )


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("causal", [True, False])
def test_nothing_reads_a_value_of_its_device(causal: bool, window: int | None) -> None:
    """On the meta device there are shapes and no values: whatever would wait for a GPU raises here."""
    with torch.device("meta"):
        q, rows, pool = torch.empty(6, 7, 8), torch.empty(9, 2, 8), torch.empty(9, 2, 4, 8)
        starts, table = torch.empty(3, dtype=torch.int32), torch.empty(2, 4, dtype=torch.int32)
    common: dict[str, Any] = {"group_bounds": BOUNDS, "scale": 1.0, "window": window}
    lengths = ((2, 9), (4, 4))
    dense = reference.flash_prefill_dense(
        q,
        rows,
        rows,
        query_starts=starts,
        key_starts=starts,
        lengths=((2, 6), (4, 3)),
        causal=causal,
        **common,
    )
    paged = reference.flash_prefill(
        q,
        pool,
        pool,
        page_table_SP=table,
        query_starts=starts,
        context_lens_S=starts[1:],
        lengths=lengths,
        causal=causal,
        **common,
    )
    decoded = reference.paged_decode(
        q,
        pool,
        pool,
        page_table_BP=table,
        context_lens_B=starts[1:],
        max_context_len=16,
        num_queries=3,
        **common,
    )
    assert dense.shape == paged.shape == decoded.shape == q.shape
