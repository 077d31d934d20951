"""Values that a kernel would follow anywhere: each is found before the launch, and named with its place."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from headway_kernels.debug import check_slots
from headway_kernels.decode_plan import plan_decode
from headway_kernels.flash_prefill import flash_prefill
from headway_kernels.flash_prefill_dense import flash_prefill_dense
from headway_kernels.moe import moe
from headway_kernels.paged_decode import paged_decode
from headway_kernels.penalise import penalise_
from moe_checks import moe_inputs

POOL = torch.zeros(6, 1, 16, 16)  # six pages of 16


def ints(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def prefill(**wrong: Any) -> Tensor:
    """Two sequences: 3 new tokens of 20, and 2 of 2."""
    arguments: dict[str, Any] = {
        "page_table_SP": ints([5, 0, 99], [1, -1, -1]),
        "query_starts": ints(0, 3, 5),
        "context_lens_S": ints(20, 2),
        "lengths": [(3, 20), (2, 2)],
    }
    return flash_prefill(
        torch.zeros(5, 1, 16),
        POOL,
        POOL,
        group_bounds=(0, 1),
        scale=1.0,
        check_values=True,
        **arguments | wrong,
    )


def decode(**wrong: Any) -> Tensor:
    """Two tokens each of two sequences, of 20 and of 1."""
    arguments: dict[str, Any] = {
        "page_table_BP": ints([5, 0, 99], [1, -1, -1]),
        "context_lens_B": ints(20, 1),
        "max_context_len": 20,
        "num_queries": 2,
    }
    return paged_decode(
        torch.zeros(4, 1, 16),
        POOL,
        POOL,
        group_bounds=(0, 1),
        scale=1.0,
        check_values=True,
        **arguments | wrong,
    )


def dense(**wrong: Any) -> Tensor:
    arguments: dict[str, Any] = {"query_starts": ints(0, 3, 5), "key_starts": ints(0, 4, 4)}
    rows = torch.zeros(4, 1, 16)
    return flash_prefill_dense(
        torch.zeros(5, 1, 16),
        rows,
        rows,
        **{"lengths": [(3, 4), (2, 0)], "group_bounds": (0, 1), "scale": 1.0} | arguments | wrong,
        check_values=True,
    )


def test_right_values_pass_and_entries_that_are_not_used_may_be_anything() -> None:
    assert prefill().isfinite().all()
    assert decode().isfinite().all()
    assert dense().isfinite().all()
    behind = ints([99, 0, 99], [1, -1, -1])
    assert prefill(page_table_SP=behind, window=2).isfinite().all()
    assert decode(page_table_BP=behind, window=3).isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"page_table_SP": ints([5, 6, 0], [1, 0, 0])}, r"page_table\[0, 1\] must be from 0 to 5, got 6"),
        ({"page_table_SP": ints([5, 0, 0], [-1, 0, 0])}, r"page_table\[1, 0\] must be from 0 to 5, got -1"),
        ({"page_table_SP": ints([5], [1])}, r"context_lens\[0\] must be from 0 to 16, got 20"),
        ({"query_starts": ints(0, 4, 5)}, r"query_starts\[1\] must be 3 by the lengths given, got 4"),
        ({"context_lens_S": ints(20, 3)}, r"context_lens\[1\] must be 2 by the lengths given, got 3"),
        (
            {"lengths": [(3, 20), (2, 1)], "context_lens_S": ints(20, 1)},
            r"context_lens\[1\] must be at least 2, its new tokens, got 1",
        ),
        (
            {"lengths": [(3, 20), (3, 3)], "query_starts": ints(0, 3, 6)},
            r"query_starts\[2\] must be 5, the tokens given, got 6",
        ),
        ({"lengths": [(6, 20), (-1, 2)]}, r"lengths\[1\] must not be negative, got -1 for query_starts"),
    ],
)
def test_prefill(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"flash_prefill: {message}"):
        prefill(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"page_table_BP": ints([5, 6, 0], [1, 0, 0])}, r"page_table\[0, 1\] must be from 0 to 5, got 6"),
        ({"context_lens_B": ints(20, -1)}, r"context_lens\[1\] must be from 0 to 20, got -1"),
        (
            {"context_lens_B": ints(49, 1), "max_context_len": 99},
            r"context_lens\[0\] must be from 0 to 48, got 49",
        ),
    ],
)
def test_decode(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"paged_decode: {message}"):
        decode(**wrong)


def test_a_plan_made_for_other_lengths() -> None:
    heads: dict[str, Any] = {"num_kv_heads": 1, "group": 1, "head_dim": 16, "dtype": torch.float32}
    plan = plan_decode(ints(70, 1), **heads, num_queries=2)
    with pytest.raises(ValueError, match=r"plan\.tile_starts\[1\] must be 1 by the lengths given, got 3"):
        decode(plan=plan)


def test_dense() -> None:
    with pytest.raises(ValueError, match=r"key_starts\[1\] must be 4 by the lengths given, got 3"):
        dense(key_starts=ints(0, 3, 4))
    with pytest.raises(ValueError, match=r"key_starts\[2\] must be 4, the tokens given, got 5"):
        dense(key_starts=ints(0, 4, 5), lengths=[(3, 4), (2, 1)])


def test_slots() -> None:
    check_slots("kv_write", "slots", torch.tensor([7, 0, 3]), 8)
    with pytest.raises(ValueError, match=r"kv_write: slots\[2\] must be from 0 to 7, got 8"):
        check_slots("kv_write", "slots", torch.tensor([7, 0, 8, -1]), 8)
    with pytest.raises(ValueError, match=r"kv_write: slots\[3\] must differ from slots\[1\], got 4 for both"):
        check_slots("kv_write", "slots", torch.tensor([7, 4, 5, 4]), 8)


def test_penalties() -> None:
    """Places of a batch of 3, each once; rows of tables of 4 and of 5, as often as one likes."""
    column = torch.ones(2, 1)
    options = {"repetition_P1": column, "presence_P1": column, "frequency_P1": column}
    tables = {
        "in_prompt_RV": torch.zeros(4, 9, dtype=torch.bool),
        "num_in_output_RV": torch.zeros(5, 9, dtype=torch.int32),
    }

    def penalise(places: list[int], rows: list[int]) -> None:
        penalise_(
            torch.zeros(3, 9),
            places_P=torch.tensor(places),
            rows_P=torch.tensor(rows),
            **options,
            **tables,
            check_values=True,
        )

    penalise([2, 0], [3, 3])
    for places, rows, message in [
        ([0, 3], [0, 1], r"places\[1\] must be from 0 to 2, got 3"),
        ([-1, 0], [0, 1], r"places\[0\] must be from 0 to 2, got -1"),
        ([1, 1], [0, 1], r"places\[1\] must differ from places\[0\], got 1 for both"),
        ([0, 1], [0, 4], r"rows\[1\] must be from 0 to 3, got 4"),
    ]:
        with pytest.raises(ValueError, match=f"penalise_: {message}"):
            penalise(places, rows)


@pytest.mark.parametrize("expert", [-1, 5])
def test_experts(expert: int) -> None:
    x_TH, others = moe_inputs(3, num_experts=5, top_k=2, hidden=16, mlp_size=16)
    assert moe(x_TH, **others, check_values=True).isfinite().all()
    others["experts_TK"][2, 1] = expert
    with pytest.raises(ValueError, match=rf"moe: experts\[2, 1\] must be from 0 to 4, got {expert}"):
        moe(x_TH, **others, check_values=True)
