"""Paged decode in Triton's interpreter: float32 and float16, against float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from attention_cases import BESIDE, EMPTY, HEADS, VARIANTS
from attention_checks import check_decode
from headway_kernels.decode_plan import plan_decode
from headway_kernels.hopper_roles import registers_of
from headway_kernels.paged_decode import paged_decode
from headway_kernels.tiles import Tiles, tiles

SMALL = Tiles(rows=16, positions=16, num_warps=4, num_stages=2)
LENGTHS = [1, 40, 0, 16, 65]


def test_71_heads_with_the_tile_chosen_for_them_and_sequences_in_several_shares() -> None:
    torch.manual_seed(0)
    lengths = [1, 64, 0, 200, 65, 0, 130, *range(8)]
    check_decode(paged_decode, plan_decode, lengths, (0, 71), dtype=torch.float16, num_programs=4)
    check_decode(paged_decode, plan_decode, lengths, (0, 71, 75), "sinks", num_programs=3, num_queries=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_over_ragged_groups(variant: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check_decode(
        paged_decode, plan_decode, LENGTHS, HEADS["ragged"], variant, dtype=dtype, tile=SMALL, num_programs=5
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_with_several_queries_a_sequence(variant: str) -> None:
    """Sequences shorter than their queries too: what stands before the start sees nothing, and is zero."""
    torch.manual_seed(0)
    check_decode(
        paged_decode,
        plan_decode,
        LENGTHS,
        HEADS["ragged"],
        variant,
        num_queries=3,
        tile=SMALL,
        num_programs=5,
        check_values=True,
    )


@pytest.mark.parametrize("variant", ["plain", "sinks"])
@pytest.mark.parametrize("empty", EMPTY)
def test_sequences_without_a_context_give_zeros_and_the_sinks_as_log_sum_exp(
    empty: str, variant: str
) -> None:
    torch.manual_seed(0)
    for num_queries, num_programs in ((1, 5), (3, 2)):
        check_decode(
            paged_decode,
            plan_decode,
            EMPTY[empty],
            HEADS["ragged"],
            variant,
            num_queries=num_queries,
            tile=SMALL,
            num_programs=num_programs,
            check_values=True,
        )


@pytest.mark.parametrize("variant", ["plain", "all of them"])
@pytest.mark.parametrize("num_programs", [4, 30, 31, 90])
def test_several_blocks_of_rows_dealt_to_fewer_programs_and_to_more(num_programs: int, variant: str) -> None:
    """46 rows of one KV head and 8 of the other, three blocks of 16 each: 30 pieces, if none were cut."""
    torch.manual_seed(0)
    check_decode(
        paged_decode,
        plan_decode,
        LENGTHS,
        (0, 23, 27),
        variant,
        num_queries=2,
        tile=SMALL,
        num_programs=num_programs,
    )


@pytest.mark.parametrize("beside", BESIDE)
def test_queries_and_results_that_are_parts_of_wider_rows(beside: str) -> None:
    torch.manual_seed(0)
    for dtype, num_queries in ((torch.float16, 1), (torch.float32, 2)):
        check_decode(
            paged_decode,
            plan_decode,
            LENGTHS,
            HEADS["ragged"],
            "sinks",
            dtype=dtype,
            num_queries=num_queries,
            num_programs=5,
            beside=BESIDE[beside],
        )


@pytest.mark.parametrize(("head_dim", "page_size"), [(64, 8), (128, 24), (256, 8)])
def test_a_plan_by_roles_for_pools_that_the_copy_engine_does_not_take(head_dim: int, page_size: int) -> None:
    torch.manual_seed(0)
    for bounds, num_programs in (((0, 71), 4), ((0, 5, 7), 3)):
        check_decode(
            paged_decode,
            plan_decode,
            [3, 0, 150],
            bounds,
            "window",
            head_dim=head_dim,
            page_size=page_size,
            dtype=torch.float16,
            num_programs=num_programs,
        )


@pytest.mark.parametrize("heads", ["MHA", "MQA", "MQA, more heads than a tile has rows"])
def test_groups_of_any_size(heads: str) -> None:
    torch.manual_seed(0)
    check_decode(paged_decode, plan_decode, [37, 3], HEADS[heads], "window", tile=SMALL, num_programs=3)


@pytest.mark.parametrize("head_dim", [64, 72, 80, 96, 128, 192, 256])
def test_every_head_size_with_the_tiles_chosen_for_it(head_dim: int) -> None:
    torch.manual_seed(0)
    check_decode(paged_decode, plan_decode, [3, 150], (0, 2), head_dim=head_dim, dtype=torch.float16)


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 15, 16, 17, 31, 32, 33, 90]), min_size=1, max_size=6),
    page_size=st.sampled_from([16, 24, 64]),
    variant=st.sampled_from(sorted(VARIANTS)),
    num_queries=st.integers(1, 8),
    num_programs=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_any_lengths_dealt_to_any_number_of_programs(
    lengths: list[int], page_size: int, variant: str, num_queries: int, num_programs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    check_decode(
        paged_decode,
        plan_decode,
        lengths,
        (0, 3, 4),
        variant,
        head_dim=16,
        page_size=page_size,
        num_queries=num_queries,
        tile=SMALL,
        num_programs=num_programs,
        check_values=True,
    )


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=9),
    window=st.sampled_from([None, 1, 16, 50]),
    num_queries=st.sampled_from([1, 4]),
    num_programs=st.integers(1, 30),
)
def test_a_plan_says_where_each_equal_share_begins(
    lengths: list[int], window: int | None, num_queries: int, num_programs: int
) -> None:
    plan = plan_decode(
        torch.tensor(lengths, dtype=torch.int32),
        num_kv_heads=3,
        group=4,
        head_dim=64,
        dtype=torch.float32,
        num_queries=num_queries,
        window=window,
        tile=SMALL,
        num_programs=num_programs,
    )
    reach = None if window is None else window + num_queries - 1
    seen = [range(0 if reach is None else max(0, length - reach), length) for length in lengths]
    owners = [row for row, span in enumerate(seen) for _ in {position // 16 for position in span} or {0}]
    starts = plan.tile_starts.tolist()
    assert starts == [sum(owner < row for owner in owners) for row in range(len(lengths) + 1)]
    each = -(-3 * len(owners) // num_programs)
    for worker, row in enumerate(plan.first_row.tolist()):
        if worker * each < 3 * len(owners):
            assert row == owners[worker * each % len(owners)]


def test_no_sequences_give_no_rows_whatever_the_strides_of_their_empty_table() -> None:
    pool = torch.zeros(1, 1, 16, 64)
    found = paged_decode(
        torch.zeros(0, 1, 64),
        pool,
        pool,
        page_table_BP=torch.zeros(1, dtype=torch.int32).as_strided((0, 3), (0, 0)),
        context_lens_B=torch.zeros(0, dtype=torch.int32),
        max_context_len=0,
        group_bounds=(0, 1),
        scale=1.0,
    )
    assert found.shape == (0, 1, 64)


def test_lengths_for_a_plan_are_dense() -> None:
    every_other = torch.tensor([40, 3, 20, 3], dtype=torch.int32)[::2]
    with pytest.raises(ValueError, match=r"plan_decode: context_lens must be int32 \[2\] on cpu, dense"):
        plan_decode(every_other, num_kv_heads=1, group=1, head_dim=16, dtype=torch.float32)


def test_a_plan_of_another_step_and_arguments_that_do_not_fit_are_named() -> None:
    lengths, pool = torch.tensor([3], dtype=torch.int32), torch.zeros(1, 1, 16, 64)
    heads: dict[str, Any] = {"num_kv_heads": 1, "group": 2, "head_dim": 64, "dtype": torch.float32}
    arguments: dict[str, Any] = {
        "page_table_BP": torch.zeros(1, 1, dtype=torch.int32),
        "context_lens_B": lengths,
        "max_context_len": 3,
        "group_bounds": (0, 2),
        "scale": 1.0,
    }
    for wrong, message in [
        ({"plan": plan_decode(lengths, **heads, window=8)}, "plan must be for window = None, got one for 8"),
        (
            {"plan": plan_decode(lengths, **heads, num_queries=2)},
            "plan must be for num_queries = 1, got one for 2",
        ),
        (
            {"plan": plan_decode(lengths.repeat(2), **heads)},
            "plan must be for sequences = 1, got one for 2",
        ),
        (
            {"plan": plan_decode(lengths, **heads | {"head_dim": 32})},
            "plan must be for head_dim = 64, got one for 32",
        ),
        (
            {"plan": plan_decode(lengths, **heads | {"group": 17})},
            "plan must be for group = 2, got one for 17",
        ),
        (
            {"plan": plan_decode(lengths, **heads | {"num_kv_heads": 2})},
            "plan must be for num_kv_heads = 1, got one for 2",
        ),
        ({"num_queries": 9}, "num_queries must be from 1 to 8, got 9"),
        ({"num_queries": 2}, "q must be 2 tokens for each of 1 sequences"),
        ({"lse_BQ": torch.zeros(1, 3)}, r"lse must be torch\.float32 \[1, 2\]"),
        ({"group_bounds": (0, 2, 2)}, r"group_bounds must rise strictly, got \[0, 2, 2\]"),
        ({"context_lens_B": lengths.repeat(2)[::2].expand(2)}, r"context_lens must be int32 \[2\] .* dense"),
    ]:
        with pytest.raises(ValueError, match=f"paged_decode: {message}"):
            paged_decode(torch.zeros(1, 2, 64), pool, pool, **arguments | wrong)


def test_a_plan_for_what_no_step_has_is_refused() -> None:
    lens, numbers = torch.zeros(2, dtype=torch.int32), {"num_kv_heads": 1, "group": 4, "head_dim": 64}
    by_roles = Tiles(rows=64, positions=64, num_warps=4, num_stages=2, groups=1)
    for wrong, message in [
        ({"num_kv_heads": 0}, "num_kv_heads must be from 1 to 2147483647, got 0"),
        ({"head_dim": 512}, "head_dim must be from 1 to 256, got 512"),
        ({"num_queries": 99}, "num_queries must be from 1 to 8, got 99"),
        ({"window": 0}, "window must be an integer of at least 1, got 0"),
        ({"dtype": torch.int8}, "dtype must be a 16- or 32-bit float, got torch.int8"),
        ({"num_programs": 0}, "num_programs must be from 1 to 16384, got 0"),
        ({"num_programs": 5, "tile": by_roles}, "num_programs must be from 1 to 4, got 5"),
    ]:
        with pytest.raises(ValueError, match=f"plan_decode: {message}"):
            plan_decode(lens, **{**numbers, "dtype": torch.float32, **wrong})


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_all_programs_of_a_multiprocessor_fit_there_at_once(
    dtype: torch.dtype, capability: tuple[int, int]
) -> None:
    """One that waits for another to end makes the step longer by a third, or by half."""
    for head_dim in (64, 80, 96, 128, 192, 256):
        for group in (1, 4, 16, 64, 71, 128, 142):
            tile = tiles("paged_decode", head_dim=head_dim, group=group, dtype=dtype, capability=capability)
            registers = 255 * 32 * tile.num_warps * tile.programs
            if tile.groups:
                begin, multiplying, fetching = registers_of(tile)
                assert begin is None or begin * (tile.groups + 1) * 128 * tile.programs <= 65_536
                registers = (multiplying * tile.groups + fetching) * 128 * tile.programs
            assert tile.programs == 1 or registers <= 65_536, (head_dim, group, tile)
