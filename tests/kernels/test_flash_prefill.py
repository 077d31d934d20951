"""Flash prefill in Triton's interpreter: float32 and float16, against float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from attention_cases import HEADS, VARIANTS
from attention_checks import check_prefill
from headway_kernels.flash_prefill import flash_prefill
from headway_kernels.tiles import Tiles

SMALL = Tiles(rows=32, positions=32, num_warps=4, num_stages=2)
BOXES = Tiles(rows=32, positions=16, num_warps=4, num_stages=2, boxes=True)
CHUNKS = [(7, 7), (1, 40), (0, 33), (20, 70), (1, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_over_ragged_groups(variant: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check_prefill(flash_prefill, CHUNKS, HEADS["ragged"], variant, dtype=dtype, tile=SMALL)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_without_causality(variant: str) -> None:
    """Every query sees its whole context; a window and ALiBi count distance to either side."""
    torch.manual_seed(0)
    check_prefill(flash_prefill, CHUNKS, HEADS["ragged"], variant, tile=SMALL, causal=False)


@pytest.mark.parametrize("heads", ["MHA", "MQA", "MQA, more heads than a tile has rows"])
def test_groups_of_any_size_fill_a_tile(heads: str) -> None:
    torch.manual_seed(0)
    check_prefill(flash_prefill, [(3, 3), (5, 37)], HEADS[heads], "window", tile=SMALL)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
def test_every_head_size_with_the_tiles_chosen_for_it(head_dim: int) -> None:
    torch.manual_seed(0)
    check_prefill(flash_prefill, [(3, 3), (9, 150)], (0, 2), head_dim=head_dim, dtype=torch.float16)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("variant", ["plain", "all of them"])
def test_tiles_fetched_as_boxes(variant: str, causal: bool) -> None:
    torch.manual_seed(0)
    check_prefill(
        flash_prefill,
        CHUNKS,
        HEADS["ragged"],
        variant,
        head_dim=80,
        page_size=32,
        tile=BOXES,
        causal=causal,
    )


@pytest.mark.parametrize("head_dim", [32, 20])
def test_pools_that_the_copy_engine_would_refuse_are_read_by_pointer(head_dim: int) -> None:
    """Pools that begin off a multiple of 16 bytes, and rows that do."""
    torch.manual_seed(0)

    def shifted(q_TQD: Tensor, *pools: Tensor, **arguments: Any) -> Tensor:
        moved = [torch.cat((pool.new_zeros(1), pool.flatten()))[1:].view_as(pool) for pool in pools]
        return flash_prefill(q_TQD, *moved, **arguments)

    check_prefill(shifted, CHUNKS, (0, 2), head_dim=head_dim, page_size=32, dtype=torch.float16, tile=BOXES)
    check_prefill(
        flash_prefill, CHUNKS, (0, 2), head_dim=head_dim, page_size=32, dtype=torch.float16, tile=BOXES
    )


@pytest.mark.parametrize("page_size", [16, 24])
def test_a_long_prompt_is_copied_into_larger_pages_first(page_size: int) -> None:
    """Prompts computed whole, one of 1024 tokens: the last page is part-filled, what is behind it is NaN."""
    torch.manual_seed(0)
    check_prefill(
        flash_prefill,
        [(3, 3), (1030, 1030)],
        (0, 1),
        "window",
        head_dim=16,
        page_size=page_size,
        dtype=torch.float16,
    )


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([0, 1, 15, 16, 17, 31, 32, 64])), min_size=1, max_size=4
    ).filter(lambda lengths: any(new for new, _ in lengths)),
    page_size=st.sampled_from([16, 24, 64]),
    variant=st.sampled_from(sorted(VARIANTS)),
    causal=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_lengths_and_page_sizes(
    lengths: list[tuple[int, int]], page_size: int, variant: str, causal: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    check_prefill(
        flash_prefill,
        [(new, new + old) for new, old in lengths],
        (0, 3, 4),
        variant,
        head_dim=16,
        page_size=page_size,
        tile=SMALL,
        causal=causal,
        check_values=True,
    )


def test_arguments_that_do_not_fit_are_named() -> None:
    pool = torch.zeros(4, 2, 16, 64)
    arguments = {
        "page_table_SP": torch.zeros(1, 4, dtype=torch.int32),
        "query_starts": torch.tensor([0, 3], dtype=torch.int32),
        "context_lens_S": torch.tensor([3], dtype=torch.int32),
        "lengths": [(3, 3)],
        "group_bounds": (0, 2, 4),
        "scale": 1.0,
    }
    q = torch.zeros(3, 4, 64)
    for wrong, message in [
        ({"page_table_SP": torch.zeros(1, 4)}, "page_table must be int32"),
        ({"group_bounds": (0, 2, 5)}, "group_bounds must go from 0 to 4"),
        ({"group_bounds": (0, 4)}, r"k_pool must be \[pages, 1, page_size, 64\]"),
        ({"query_starts": torch.tensor([0, 1, 3]).int()}, r"query_starts must be int32 \[2\]"),
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"out_TQD": torch.zeros(3, 4, 32)}, r"out must be torch\.float32 \[3, 4, 64\]"),
        ({"lse_TQ": torch.zeros(3, 4).double()}, r"lse must be torch\.float32 \[3, 4\]"),
        ({"sinks_Q": torch.zeros(3)}, r"sinks_Q must be \[4\]"),
        ({"group_bounds": (0, 6, 4)}, r"group_bounds must rise strictly, got \[0, 6, 4\]"),
        ({"page_table_SP": torch.zeros(4, 2).int()[:, :1].T}, r"page_table must be .* rows dense"),
        (
            {"query_starts": torch.tensor([0, 9, 3, 9]).int()[::2]},
            r"query_starts must be int32 \[2\] .* dense",
        ),
        ({"sinks_Q": torch.zeros(8)[::2]}, r"sinks_Q must be \[4\] on cpu, dense"),
        ({"alibi_slopes_Q": torch.zeros(8)[::2]}, r"alibi_slopes_Q must be \[4\] on cpu, dense"),
    ]:
        with pytest.raises(ValueError, match=f"flash_prefill: {message}"):
            flash_prefill(q, pool, pool, **{**arguments, **wrong})
    with pytest.raises(ValueError, match=r"flash_prefill: v_pool must be torch\.float32"):
        flash_prefill(q, pool, pool.half(), **arguments)
