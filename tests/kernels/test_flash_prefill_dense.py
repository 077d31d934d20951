"""Prefill over packed keys and values in Triton's interpreter: float32 and float16, against float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from attention_cases import BESIDE, HEADS, VARIANTS
from attention_checks import check_prefill_dense
from headway_kernels.flash_prefill_dense import flash_prefill_dense
from headway_kernels.tiles import Tiles

SMALL = Tiles(rows=32, positions=32, num_warps=4, num_stages=2)
PAIRS = [(7, 7), (2, 0), (35, 3), (0, 33), (9, 70), (1, 1)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_from_any_row_on(variant: str, causal: bool) -> None:
    """More queries than keys too: the last query stands at the last key, and what sees nothing is zero."""
    torch.manual_seed(0)
    check_prefill_dense(flash_prefill_dense, PAIRS, HEADS["ragged"], variant, tile=SMALL, causal=causal)


@pytest.mark.parametrize("head_dim", [64, 72, 80, 96, 128, 192, 200, 256])
def test_every_head_size_with_the_tiles_chosen_for_it(head_dim: int) -> None:
    torch.manual_seed(0)
    pairs = [(3, 3), (9, 150)]
    check_prefill_dense(flash_prefill_dense, pairs, (0, 2), head_dim=head_dim, dtype=torch.float16)


@pytest.mark.parametrize("beside", BESIDE)
def test_queries_and_results_that_are_parts_of_wider_rows(beside: str) -> None:
    torch.manual_seed(0)
    check_prefill_dense(flash_prefill_dense, PAIRS, HEADS["ragged"], tile=SMALL, beside=BESIDE[beside])


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([0, 1, 15, 16, 17, 31, 32, 64])), min_size=1, max_size=4
    ).filter(lambda lengths: any(new for new, _ in lengths)),
    variant=st.sampled_from(sorted(VARIANTS)),
    causal=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_lengths(lengths: list[tuple[int, int]], variant: str, causal: bool, seed: int) -> None:
    torch.manual_seed(seed)
    check_prefill_dense(
        flash_prefill_dense,
        lengths,
        (0, 3, 4),
        variant,
        head_dim=16,
        tile=SMALL,
        causal=causal,
        check_values=True,
    )


def test_arguments_that_do_not_fit_are_named() -> None:
    rows = torch.zeros(5, 2, 64)
    starts = torch.tensor([0, 5], dtype=torch.int32)
    arguments: dict[str, Any] = {
        "query_starts": starts,
        "key_starts": starts,
        "lengths": [(5, 5)],
        "group_bounds": (0, 2, 4),
        "scale": 1.0,
    }
    q = torch.zeros(5, 4, 64)
    for wrong, message in [
        ({"k_TGD": torch.zeros(5, 3, 64)}, r"k_TGD must be \[tokens, 2, 64\]"),
        ({"v_TGD": torch.zeros(6, 2, 64)}, r"v_TGD must be the shape of k_TGD, \(5, 2, 64\)"),
        ({"k_TGD": rows.half()}, r"k_TGD must be torch\.float32"),
        ({"key_starts": starts.long()}, r"key_starts must be int32 \[2\]"),
        ({"lengths": [(5, 5), (0, 0)]}, r"query_starts must be int32 \[3\]"),
    ]:
        with pytest.raises(ValueError, match=f"flash_prefill_dense: {message}"):
            flash_prefill_dense(q, **{"k_TGD": rows, "v_TGD": rows} | arguments | wrong)
