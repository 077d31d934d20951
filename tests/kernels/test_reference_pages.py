"""Attention over pages: the reference against one query and head at a time, in float64."""

import pytest
import torch
from torch import Tensor

import attention_cases
from attention_cases import Cache
from headway_kernels import reference

HEADS = {
    "MHA": (3, (0, 1, 2, 3)),
    "MQA": (1, (0, 5)),
    "GQA": (2, (0, 4, 8)),
    "ragged, five queries of one KV head and two of the next": (2, (0, 5, 7)),
}


def make_cache(lengths: list[int], num_kv_heads: int, page_size: int) -> Cache:
    torch.manual_seed(sum(lengths) + page_size)
    shape = {"num_kv_heads": num_kv_heads, "page_size": page_size, "head_dim": 6}
    return attention_cases.make_cache(lengths, **shape, dtype=torch.float64)


def naive_attention(
    q_TQD: Tensor,
    k_LGD: Tensor,
    v_LGD: Tensor,
    bounds: tuple[int, ...],
    scale: float,
    window: int | None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
    alibi_slopes_Q: Tensor | None = None,
) -> Tensor:
    """One query and head at a time; the queries are the last T of the L positions."""
    out_TQD = torch.empty_like(q_TQD)
    start = len(k_LGD) - len(q_TQD)
    for t in range(len(q_TQD)):
        low = 0 if window is None else max(0, start + t + 1 - window)
        for group in range(len(bounds) - 1):
            k, v = k_LGD[low : start + t + 1, group], v_LGD[low : start + t + 1, group]
            for head in range(bounds[group], bounds[group + 1]):
                scores = (k @ q_TQD[t, head]) * scale
                if softcap is not None:
                    scores = (scores / softcap).tanh() * softcap
                if alibi_slopes_Q is not None:
                    scores -= alibi_slopes_Q[head] * torch.arange(len(scores)).flip(0)
                exponents = scores.exp()
                total = exponents.sum() + (0 if sinks_Q is None else sinks_Q[head].exp())
                out_TQD[t, head] = exponents / total @ v
    return out_TQD


def decode(q: Tensor, cache: Cache, lengths: list[int], slack: int = 0, **options: object) -> Tensor:
    return reference.paged_decode(
        q,
        cache.k_pool,
        cache.v_pool,
        page_table_BP=cache.table,
        context_lens_B=torch.tensor(lengths, dtype=torch.int32),
        max_context_len=max(lengths) + slack,
        **options,  # type: ignore[arg-type]
    )


def prefill(q: Tensor, cache: Cache, lengths: list[tuple[int, int]], **options: object) -> Tensor:
    queries = torch.tensor([0, *(count for count, _ in lengths)], dtype=torch.int32)
    return reference.flash_prefill(
        q,
        cache.k_pool,
        cache.v_pool,
        page_table_SP=cache.table,
        query_starts=queries.cumsum(0, dtype=torch.int32),
        context_lens_S=torch.tensor([context for _, context in lengths], dtype=torch.int32),
        lengths=lengths,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("window", [None, 1, 4, 7, 100])
@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", [[13], [1, 16, 17, 5], [33, 4, 8]])
def test_decode_attends_to_its_own_pages_alone(
    lengths: list[int], heads: str, page_size: int, window: int | None
) -> None:
    num_kv_heads, bounds = HEADS[heads]
    cache = make_cache(lengths, num_kv_heads, page_size)
    q = torch.randn(len(lengths), bounds[-1], 6, dtype=torch.float64)
    out = decode(q, cache, lengths, group_bounds=bounds, scale=0.3, window=window)
    for row in range(len(lengths)):
        naive = naive_attention(q[row : row + 1], cache.keys[row], cache.values[row], bounds, 0.3, window)
        torch.testing.assert_close(out[row : row + 1], naive)


VARIANTS = {
    "softcap": {"softcap": 0.7},
    "sinks": {"sinks_Q": torch.linspace(-1, 2, 7, dtype=torch.float64)},
    "ALiBi": {"alibi_slopes_Q": torch.linspace(0.05, 0.6, 7, dtype=torch.float64)},
}
VARIANTS["all"] = VARIANTS["softcap"] | VARIANTS["sinks"] | VARIANTS["ALiBi"]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("bounds", [(0, 7), (0, 5, 7)], ids=["MQA", "ragged"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_soft_caps_sinks_and_alibi_hold_in_decode_and_prefill(
    variant: str, bounds: tuple[int, ...], window: int | None
) -> None:
    options = {"group_bounds": bounds, "scale": 0.3, "window": window, **VARIANTS[variant]}
    for lengths in ([13], [1, 16, 9]):
        cache = make_cache(lengths, len(bounds) - 1, 4)
        q = torch.randn(len(lengths), 7, 6, dtype=torch.float64)
        whole = torch.randn(sum(lengths), 7, 6, dtype=torch.float64)
        decoded = decode(q, cache, lengths, **options)
        prefilled = prefill(whole, cache, [(length, length) for length in lengths], **options)
        for row, parts in enumerate(zip(decoded.split(1), q.split(1), strict=True)):
            out, query = parts
            naive = naive_attention(
                query, cache.keys[row], cache.values[row], bounds, 0.3, window, **VARIANTS[variant]
            )
            torch.testing.assert_close(out, naive)
        for row, parts in enumerate(zip(prefilled.split(lengths), whole.split(lengths), strict=True)):
            out, query = parts
            naive = naive_attention(
                query, cache.keys[row], cache.values[row], bounds, 0.3, window, **VARIANTS[variant]
            )
            torch.testing.assert_close(out, naive)


@pytest.mark.parametrize("window", [None, 5])
def test_decode_takes_a_longer_bound_on_the_context(window: int | None) -> None:
    lengths = [9, 3]
    cache = make_cache(lengths, 2, 4)
    q = torch.randn(2, 4, 6, dtype=torch.float64)
    options = {"group_bounds": (0, 2, 4), "scale": 1.0, "window": window}
    exact = decode(q, cache, lengths, **options)
    torch.testing.assert_close(decode(q, cache, lengths, slack=8, **options), exact)


@pytest.mark.parametrize("page_size", [4, 16])
def test_a_window_needs_no_page_that_it_has_left(page_size: int) -> None:
    lengths, window = [40, 23], 6
    cache = make_cache(lengths, 2, page_size)
    q = torch.randn(2, 4, 6, dtype=torch.float64)
    options = {"group_bounds": (0, 2, 4), "scale": 1.0, "window": window}
    before = decode(q, cache, lengths, **options), decode(q[:1], cache, lengths[:1], **options)
    for row, length in enumerate(lengths):
        left = (length - window) // page_size
        cache.k_pool[cache.table[row, :left].long()] = torch.nan
        cache.v_pool[cache.table[row, :left].long()] = torch.nan
    after = decode(q, cache, lengths, **options), decode(q[:1], cache, lengths[:1], **options)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("heads", HEADS)
def test_prefill_is_causal_over_cached_and_new_tokens(heads: str, page_size: int, window: int | None) -> None:
    num_kv_heads, bounds = HEADS[heads]
    lengths = [(7, 7), (1, 12), (5, 18), (1, 1), (16, 32)]  # (new, with cached)
    cache = make_cache([context for _, context in lengths], num_kv_heads, page_size)
    q = torch.randn(sum(count for count, _ in lengths), bounds[-1], 6, dtype=torch.float64)
    out = prefill(q, cache, lengths, group_bounds=bounds, scale=0.3, window=window)
    start = 0
    for row, (count, _) in enumerate(lengths):
        part = slice(start, start + count)
        naive = naive_attention(q[part], cache.keys[row], cache.values[row], bounds, 0.3, window)
        torch.testing.assert_close(out[part], naive)
        start += count


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("chunks", [[1, 18], [4, 4, 11], [17, 1, 1]])
def test_chunked_prefill_equals_whole_prefill(chunks: list[int], window: int | None) -> None:
    cache = make_cache([19], 2, 4)
    q = torch.randn(19, 7, 6, dtype=torch.float64)
    options = {"group_bounds": (0, 5, 7), "scale": 0.4, "window": window}
    parts, done = [], 0
    for chunk in chunks:
        parts.append(prefill(q[done : done + chunk], cache, [(chunk, done + chunk)], **options))
        done += chunk
    torch.testing.assert_close(torch.cat(parts), prefill(q, cache, [(19, 19)], **options))
