"""The pages of whole prompts, copied together into pages that the copy engine takes at once.

A tile of scores spans several small pages, and pointers to gather them by cost the matrix units a quarter
of their speed. A prompt that is computed whole is read as often as it has tiles of rows, so one copy of its
K and V pays: on an H200 (bf16, D 128, 32/8 heads, 8192 tokens) pages of 16 take 1063 us so, copy included,
and 1383 us by pointers; one dense page takes 1057. Chunks of a longer context are left in their pages: a
copy of it is memory that nobody has set aside.

Layout: pools [pages, kv_heads, page_size, D] -> [pages', kv_heads, PAGES_OF, D]. Grid: (pages', kv_heads).

Shape suffixes: as in `reference`; N positions of a page, D values of a head.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.launch import FUSED
from headway_kernels.pool_tiles import sequence_of
from headway_kernels.tiles import padded

PAGES_OF = 64


def repage(
    k_pool: Tensor,
    v_pool: Tensor,
    page_table_SP: Tensor,
    query_starts: Tensor,
    lengths: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor, Tensor]:
    """(k_pool, v_pool, page_table_SP) of pages of `PAGES_OF`, for prompts without a token computed before.

    What a page has behind its sequence's end is zero. Arguments as in `reference.flash_prefill`.
    """
    num_tokens, num_seqs = sum(count for count, _ in lengths), len(lengths)
    _, num_kv_heads, page_size, head_dim = k_pool.shape
    num_pages = num_tokens // PAGES_OF + num_seqs
    k_out, v_out = (pool.new_empty(num_pages, num_kv_heads, PAGES_OF, head_dim) for pool in (k_pool, v_pool))
    longest = max(count for count, _ in lengths)
    table_out = page_table_SP.new_empty(num_seqs, triton.cdiv(longest, PAGES_OF))
    _repage_kernel[(num_pages, num_kv_heads)](
        k_pool,
        v_pool,
        k_out,
        v_out,
        page_table_SP,
        table_out,
        query_starts,
        num_seqs,
        *k_pool.stride()[:3],
        *v_pool.stride()[:3],
        page_table_SP.stride(0),
        table_out.stride(0),
        PAGE=page_size,
        PAGE_OUT=PAGES_OF,
        D=head_dim,
        WIDE=padded(head_dim),
        num_warps=4,
        **FUSED,
    )
    return k_out, v_out, table_out


@triton.jit(do_not_specialize=["num_seqs", "table_row", "table_out_row"])
def _repage_kernel(
    k_ptr,
    v_ptr,
    k_out_ptr,
    v_out_ptr,
    table_ptr,
    table_out_ptr,
    query_starts_ptr,
    num_seqs,
    k_page,
    k_head,
    k_slot,
    v_page,
    v_head,
    v_slot,
    table_row,
    table_out_row,
    PAGE: tl.constexpr,
    PAGE_OUT: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
):
    page, kv_head = tl.program_id(0), tl.program_id(1)
    row = sequence_of(page, query_starts_ptr, num_seqs, 1, PAGE_OUT)
    start = tl.load(query_starts_ptr + row)
    num_positions = tl.load(query_starts_ptr + row + 1) - start
    index = page - (start // PAGE_OUT + row)
    if index * PAGE_OUT >= num_positions:
        return
    if kv_head == 0:
        tl.store(table_out_ptr + row * table_out_row + index, page)
    slot_N = tl.arange(0, PAGE_OUT)
    position_N = index * PAGE_OUT + slot_N
    there_N = position_N < num_positions
    table_ptr += row.to(tl.int64) * table_row
    from_N = tl.load(table_ptr + position_N // PAGE, mask=there_N, other=0).to(tl.int64)
    d_D = tl.arange(0, WIDE)
    there_ND = there_N[:, None] & (d_D < D)
    head = kv_head.to(tl.int64)
    k_N = from_N * k_page + head * k_head + position_N % PAGE * k_slot
    v_N = from_N * v_page + head * v_head + position_N % PAGE * v_slot
    k_ND = tl.load(k_ptr + k_N[:, None] + d_D, mask=there_ND, other=0.0)
    v_ND = tl.load(v_ptr + v_N[:, None] + d_D, mask=there_ND, other=0.0)
    out_N = (page.to(tl.int64) * tl.num_programs(1) + kv_head) * PAGE_OUT + slot_N
    tl.store(k_out_ptr + out_N[:, None] * D + d_D, k_ND, mask=(d_D < D)[None])
    tl.store(v_out_ptr + out_N[:, None] * D + d_D, v_ND, mask=(d_D < D)[None])
