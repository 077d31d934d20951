"""`moe` in Triton's interpreter: blocks of pairs, odd sizes, uneven routing, wrong arguments."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from headway_kernels import expert_blocks as blocks_file
from headway_kernels import reference
from headway_kernels.expert_blocks import expert_blocks, most_blocks
from headway_kernels.moe import moe
from headway_kernels.tiles_matmul import grouped_rows, grouped_tiles
from moe_checks import check_moe, moe_inputs, poisoned_memory

SMALL = {"num_experts": 5, "top_k": 2, "hidden": 48, "mlp_size": 32}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def assert_sorted_into_blocks(experts: list[int], num_experts: int, rows: int) -> None:
    """Every pair is in a block of its expert, once and in order; nothing else is in any block."""
    with poisoned_memory():
        blocks = expert_blocks(torch.tensor(experts)[:, None], num_experts=num_experts, rows=rows)
    assert len(blocks) == most_blocks(len(experts), num_experts, rows)
    placed: dict[int, list[int]] = {expert: [] for expert in range(num_experts)}
    used = Counter(blocks.experts.tolist())
    for expert, pairs in zip(blocks.experts.tolist(), blocks.pairs.view(-1, rows).tolist(), strict=True):
        if expert >= 0:
            placed[expert] += pairs
    for expert, places in placed.items():
        own = [pair for pair, chosen in enumerate(experts) if chosen == expert]
        assert places == own + [-1] * (len(places) - len(own))
        assert used[expert] == -(-len(own) // rows)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=70), st.sampled_from([4, 16]))
def test_pairs_are_sorted_into_blocks_of_one_expert(experts: list[int], rows: int) -> None:
    assert_sorted_into_blocks(experts, 6, rows)


@pytest.mark.parametrize("chunk", [16, 32])
def test_pairs_are_counted_and_placed_over_many_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_file, "CHUNK", chunk)
    assert_sorted_into_blocks(torch.randint(0, 3, (75,)).tolist(), 3, 8)
    assert_sorted_into_blocks([1] * 64, 3, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_it_is_as_exact_as_the_reference(num_tokens: int, biased: bool, dtype: torch.dtype) -> None:
    check_moe(moe, num_tokens, **SMALL, biased=biased, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("hidden", "mlp_size", "spare"), [(33, 19, 1), (40, 21, 3), (130, 136, 0), (1, 1, 0)]
)
def test_sizes_and_strides_may_be_odd(hidden: int, mlp_size: int, spare: int, dtype: torch.dtype) -> None:
    sizes = SMALL | {"hidden": hidden, "mlp_size": mlp_size}
    check_moe(moe, 7, **sizes, biased=True, spare=spare, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num_tokens", [33, 100])
def test_all_tokens_may_choose_the_same_experts(num_tokens: int, dtype: torch.dtype) -> None:
    check_moe(moe, num_tokens, **SMALL, popular=2, dtype=dtype)


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (3, 3), (40, 6)])
def test_experts_may_be_few_or_many(num_experts: int, top_k: int) -> None:
    check_moe(moe, 4, **SMALL | {"num_experts": num_experts, "top_k": top_k}, biased=True)


def test_results_by_pair_that_leave_the_cache_are_rounded_as_the_references(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headway_kernels.moe.CACHED", 0)
    check_moe(moe, 5, **SMALL, biased=True, dtype=torch.float16)


def test_no_tokens_give_no_rows() -> None:
    x_TH, others = moe_inputs(0, **SMALL)
    assert moe(x_TH, **others).shape == (0, 48)


def test_an_mlp_without_a_gate_and_a_given_result() -> None:
    x_TH, others = moe_inputs(3, **SMALL)
    others |= {"gate_up_E2IH": others["gate_up_E2IH"][:, :32], "activation": torch.nn.functional.gelu}
    out_TH = torch.full((3, 48), torch.nan)
    assert moe(x_TH, **others, out_TH=out_TH) is out_TH
    torch.testing.assert_close(out_TH, reference.moe(x_TH, **others))


def test_the_same_inputs_give_the_same_bits() -> None:
    x_TH, others = moe_inputs(9, **SMALL, dtype=torch.float16)
    assert torch.equal(moe(x_TH, **others), moe(x_TH, **others))


WRONG = {
    "x": ({"x": torch.zeros(3, 48, dtype=torch.float64)}, r"moe: x must be .* got torch.float64 \[3, 48\]"),
    "experts": (
        {"experts_TK": torch.zeros(3, 2, dtype=torch.int32)},
        r"moe: experts must be torch.int64 \[3",
    ),
    "weights": ({"weights_TK": torch.zeros(3, 3)}, r"moe: weights must be torch.float32 \[3, 2\]"),
    "gate_up": ({"gate_up_E2IH": torch.zeros(5, 64, 47)}, r"moe: gate_up must be \[experts, rows, 48\]"),
    "down": ({"down_EHI": torch.zeros(4, 48, 32)}, r"moe: down must be \[5, 48, MLP size\]"),
    "strides": ({"down_EHI": torch.zeros(5, 32, 48).mT}, r"moe: down must be dense in its last dimension"),
    "bias": ({"down_bias_EH": torch.zeros(5, 47)}, r"moe: down_bias must be torch.float32 \[5, 48\]"),
    "activation": ({"activation": torch.nn.functional.silu}, r"moe: activation must give .* \[6, 32\], got"),
    "out": ({"out_TH": torch.zeros(3, 47)}, r"moe: out must be torch.float32 \[3, 48\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name: str) -> None:
    wrong, message = WRONG[name]
    x_TH, others = moe_inputs(3, **SMALL)
    with pytest.raises(ValueError, match=message):
        moe(
            **{"x_TH": x_TH} | others | {"x_TH" if key == "x" else key: value for key, value in wrong.items()}
        )


def test_blocks_grow_with_the_pairs_of_an_expert() -> None:
    pairs = [8, 128, 1024, 4096, 1 << 15]
    rows = [grouped_rows(count, 128, dtype=torch.bfloat16) for count in pairs]
    assert rows == [16, 16, 16, 64, 128]
    assert grouped_rows(1 << 15, 128, dtype=torch.float32) == 32


@pytest.mark.parametrize("num_columns", [512, 2048, 28672])
@pytest.mark.parametrize("num_blocks", [1, 8, 128])
def test_few_tokens_have_narrow_tiles_unless_programs_suffice(num_blocks: int, num_columns: int) -> None:
    tile = grouped_tiles(
        num_blocks=num_blocks,
        rows=16,
        num_columns=num_columns,
        unit=16,
        dtype=torch.bfloat16,
        capability=(9, 0),
    )
    assert tile.columns == 32 or num_blocks * num_columns // tile.columns >= 512
