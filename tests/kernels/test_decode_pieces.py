"""Decoding in pieces: how much the reference gathers at once."""

from typing import Any

import pytest
import torch

from headway_kernels import reference, reference_attention


def test_a_batch_larger_than_the_bound_is_decoded_in_pieces_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    lengths = [5, 16, 1, 33, 20]
    k_pool, v_pool = torch.randn(2, 20, 2, 16, 8)
    q_BQD = torch.randn(len(lengths), 6, 8)
    batch: dict[str, Any] = {
        "page_table_BP": torch.randperm(20)[:15].view(5, 3).int(),
        "context_lens_B": torch.tensor(lengths, dtype=torch.int32),
        "max_context_len": max(lengths),
        "group_bounds": (0, 3, 6),
        "scale": 0.3,
    }
    whole = reference.paged_decode(q_BQD, k_pool, v_pool, **batch)
    shape: dict[str, Any] = {"num_kv_heads": 2, "head_dim": 8, "dtype": k_pool.dtype}
    a_row = reference.decode_bytes(num_seqs=1, context_len=max(lengths), **shape)
    assert a_row == 33 * 2 * (2 * 8 * 4 + 16), "keys, values and their rows"
    assert reference.decode_bytes(num_seqs=5, context_len=max(lengths), **shape) == 5 * a_row
    monkeypatch.setattr(reference_attention, "DECODE_BYTES", 2 * a_row)
    assert reference.decode_bytes(num_seqs=5, context_len=max(lengths), **shape) == 2 * a_row
    torch.testing.assert_close(reference.paged_decode(q_BQD, k_pool, v_pool, **batch), whole)


def test_on_a_gpu_decoding_gathers_nothing_and_says_so() -> None:
    from headway_kernels import gpu

    shape: dict[str, Any] = {"num_kv_heads": 2, "head_dim": 8, "dtype": torch.bfloat16}
    assert gpu.decode_bytes(num_seqs=64, context_len=4096, **shape) == 0
