"""Flash prefill in Triton's interpreter: float32 and float16, against float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from attention_cases import BESIDE, HEADS, VARIANTS
from attention_checks import check_prefill
from headway_kernels.flash_prefill import flash_prefill
from headway_kernels.tiles import Tiles

SMALL = Tiles(rows=32, positions=32, num_warps=4, num_stages=2)
CHUNKS = [(7, 7), (1, 40), (0, 33), (20, 70), (1, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_over_ragged_groups(variant: str, causal: bool, dtype: torch.dtype) -> None:
    """Without causality every query sees its whole context; a window and ALiBi count to either side."""
    torch.manual_seed(0)
    check_prefill(flash_prefill, CHUNKS, HEADS["ragged"], variant, dtype=dtype, tile=SMALL, causal=causal)


@pytest.mark.parametrize("beside", BESIDE)
def test_queries_and_results_that_are_parts_of_wider_rows(beside: str) -> None:
    torch.manual_seed(0)
    check_prefill(flash_prefill, CHUNKS, HEADS["ragged"], "sinks", tile=SMALL, beside=BESIDE[beside])


@pytest.mark.parametrize("heads", ["MHA", "MQA", "MQA, more heads than a tile has rows"])
def test_groups_of_any_size_fill_a_tile(heads: str) -> None:
    torch.manual_seed(0)
    check_prefill(flash_prefill, [(3, 3), (5, 37)], HEADS[heads], "window", tile=SMALL)


@pytest.mark.parametrize("head_dim", [40, 64, 72, 80, 96, 128, 192, 200, 256])
def test_every_head_size_with_the_tiles_chosen_for_it(head_dim: int) -> None:
    torch.manual_seed(0)
    check_prefill(flash_prefill, [(3, 3), (9, 150)], (0, 2), head_dim=head_dim, dtype=torch.float16)


@pytest.mark.parametrize("which", ["out_TQD", "lse_TQ"])
def test_a_value_written_beside_the_results_is_found(which: str) -> None:
    def careless(*inputs: Tensor, **options: Any) -> Tensor:
        result = options[which]
        result.as_strided((1,), (1,), result.storage_offset() - 1).zero_()
        return flash_prefill(*inputs, **options)

    with pytest.raises(AssertionError, match="something beside a result was written"):
        check_prefill(careless, [(3, 5)], (0, 2), tile=SMALL, beside=BESIDE["heads wider than their values"])


@pytest.mark.parametrize(("head_dim", "page_size"), [(128, 24), (256, 8)])
def test_71_heads_of_one_in_pages_that_no_box_fits(head_dim: int, page_size: int) -> None:
    torch.manual_seed(0)
    check_prefill(
        flash_prefill,
        [(2, 2), (3, 70)],
        (0, 71),
        "window",
        head_dim=head_dim,
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


def test_a_window_wider_than_any_context_is_none() -> None:
    torch.manual_seed(0)
    check_prefill(flash_prefill, [(3, 3), (5, 70)], (0, 2), tile=SMALL, causal=False, far=2**31 - 1)


def test_tiles_of_other_sizes_than_kernels_take_are_refused() -> None:
    with pytest.raises(ValueError, match="Tiles: 3 groups have 192 rows, got 128"):
        Tiles(rows=128, positions=64, num_warps=4, num_stages=2, groups=3)
    with pytest.raises(ValueError, match="Tiles: rows must be a power of two from 16 on, got 192"):
        Tiles(rows=192, positions=64, num_warps=4, num_stages=2)


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
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": float("inf")}, "scale must be positive and finite, got inf"),
        ({"softcap": -1.0}, "softcap must be positive and finite, got -1.0"),
        ({"window": 2.5}, "window must be an integer of at least 1, got 2.5"),
        ({"group_bounds": ()}, "group_bounds must go from 0 to 4"),
        (
            {"lengths": [(3, 3), (0, 0)], "query_starts": torch.tensor([0, 3, 3]).int()},
            r"context_lens must be int32 \[2\]",
        ),
        ({"sinks_Q": torch.zeros(4).long()}, r"sinks_Q must be \[4\] floats"),
        (
            {"tile": Tiles(rows=128, positions=64, num_warps=4, num_stages=2, groups=2)},
            "tile must be one without groups",
        ),
        ({"window": 0}, "window must be an integer of at least 1, got 0"),
        ({"out_TQD": torch.zeros(3, 4, 32)}, r"out must be torch\.float32 \[3, 4, 64\]"),
        ({"lse_TQ": torch.zeros(3, 4).double()}, r"lse must be torch\.float32 \[3, 4\]"),
        ({"sinks_Q": torch.zeros(3)}, r"sinks_Q must be \[4\]"),
        ({"group_bounds": (0, 6, 4)}, r"group_bounds must rise strictly, got \[0, 6, 4\]"),
        ({"page_table_SP": torch.zeros(4, 2).int()[:, :1].T}, r"page_table must be .* rows dense"),
        (
            {"query_starts": torch.tensor([0, 9, 3, 9]).int()[::2]},
            r"query_starts must be int32 \[2\] .* dense",
        ),
        ({"sinks_Q": torch.zeros(8)[::2]}, r"sinks_Q must be \[4\] floats on cpu, dense"),
        ({"alibi_slopes_Q": torch.zeros(8)[::2]}, r"alibi_slopes_Q must be \[4\] floats on cpu, dense"),
    ]:
        with pytest.raises(ValueError, match=f"flash_prefill: {message}"):
            flash_prefill(q, pool, pool, **{**arguments, **wrong})
    wide = torch.zeros(3, 4, 512)
    with pytest.raises(ValueError, match="flash_prefill: head_dim must be from 1 to 256, got 512"):
        flash_prefill(wide, torch.zeros(4, 2, 16, 512), torch.zeros(4, 2, 16, 512), **arguments)
    with pytest.raises(ValueError, match=r"flash_prefill: v_pool must be torch\.float32"):
        flash_prefill(q, pool, pool.half(), **arguments)
