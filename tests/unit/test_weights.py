"""Which slices of a checkpoint each rank reads."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import ConfigError, ModelError
from headway.model.checkpoint import DTYPE_BYTES, TensorInfo
from headway.model.reads import Read
from headway.model.spec import DecoderSpec, LayerSpec, Rope
from headway.model.weights import ShardPlan, shard_plan


def decoder(num_q: int = 14, num_kv: int = 2, *, biases: bool = False, tied: bool = False) -> DecoderSpec:
    return DecoderSpec(
        family="llama",
        hidden_size=6,
        num_q_heads=num_q,
        num_kv_heads=num_kv,
        head_dim=2,
        mlp_size=17,
        vocab_size=19,
        max_model_len=64,
        layers=(LayerSpec(),) * 2,
        rope=Rope(theta=1e4, dim=2),
        qkv_bias=biases,
        o_bias=biases,
        mlp_bias=biases,
        tied_head=tied,
    )


def checkpoint(plan: ShardPlan) -> dict[str, TensorInfo]:
    return {name: info(shape) for name, shape in plan.sources.items()}


def info(shape: tuple[int, ...], dtype: str = "BF16") -> TensorInfo:
    file = Path("folder/model.safetensors")
    return TensorInfo(file=file, name="", dtype=dtype, shape=shape, offset=0, num_bytes=0)


@st.composite
def plans(draw: st.DrawFn) -> ShardPlan:
    num_kv = draw(st.integers(1, 6))
    num_q = num_kv * draw(st.integers(1, 4))
    spec = decoder(num_q, num_kv, biases=draw(st.booleans()), tied=draw(st.booleans()))
    return shard_plan(spec, draw(st.integers(1, min(num_q, 17))))


def check_filled(targets: Mapping[str, tuple[int, ...]], reads: Iterable[Read]) -> None:
    """Every value of every target is written just once."""
    written: Counter[tuple[object, ...]] = Counter()
    for read in reads:
        whole_rows = tuple(map(range, targets[read.target][len(read.place) :]))
        assert sorted(map(len, read.ranges)) == sorted(map(len, (*read.place, *whole_rows)))
        written.update((read.target, *where) for where in product(*read.place, *whole_rows))
    expected = {(name, *where) for name, shape in targets.items() for where in product(*map(range, shape))}
    assert written == Counter(expected)


@settings(deadline=None)
@given(plans())
def test_reads_fill_every_target_of_every_rank_once(plan: ShardPlan) -> None:
    for rank in range(plan.heads.world_size):
        check_filled(plan.rank(rank).targets, plan.rank(rank).reads)


def test_the_check_finds_planted_bugs() -> None:
    rank = shard_plan(decoder(), 3).rank(1)
    check_filled(rank.targets, rank.reads)
    first = rank.reads[2]
    (rows,) = first.place
    for planted in (
        (),
        (first, first),
        (replace(first, place=(range(rows.start + 1, rows.stop + 1),)),),
        (replace(first, ranges=(first.ranges[0], range(5))),),
    ):
        with pytest.raises(AssertionError):
            check_filled(rank.targets, (*rank.reads[:2], *planted, *rank.reads[3:]))


@settings(deadline=None)
@given(plans())
def test_together_the_ranks_read_all_of_the_checkpoint_and_share_only_what_is_replicated(
    plan: ShardPlan,
) -> None:
    read: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in plan.sources}
    for rank in range(plan.heads.world_size):
        for one in plan.rank(rank).reads:
            read[one.source].update(product(*one.ranges))
    for name, shape in plan.sources.items():
        assert read[name].keys() == set(product(*map(range, shape))), name
        if not ("norm" in name or "k_proj" in name or "v_proj" in name):
            assert set(read[name].values()) == {1}, name


def test_targets_have_the_names_and_shapes_that_the_decoder_expects() -> None:
    plan = shard_plan(decoder(9, 3, biases=True), 2)
    first, last = plan.rank(0).targets, plan.rank(1).targets
    layer = {
        "attn_norm.weight": (6,),
        "qkv.weight": (16, 6),  # (4 + 2 * 2) heads of 2
        "qkv.bias": (16,),
        "o.weight": (6, 8),
        "mlp_norm.weight": (6,),
        "gate_up.weight": (18, 6),
        "gate_up.bias": (18,),
        "down.weight": (6, 9),
    }
    outer = {"embed.weight": (10, 6), "norm.weight": (6,), "head.weight": (10, 6)}
    layers = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    assert last == outer | layers
    assert {name for name in first if name not in last} == {
        f"layers.{i}.{name}.bias" for i in range(2) for name in ("o", "down")
    }


def test_a_tied_head_is_no_tensor_of_its_own() -> None:
    assert "head.weight" not in shard_plan(decoder(tied=True), 2).rank(0).targets


def test_query_key_and_value_rows_follow_each_other() -> None:
    plan = shard_plan(decoder(9, 3), 2)
    reads = [read for read in plan.rank(1).reads if read.target == "layers.1.qkv.weight"]
    found = [(read.source.rpartition("self_attn.")[2], read.ranges[0], *read.place) for read in reads]
    assert found == [
        ("q_proj.weight", range(10, 18), range(8)),
        ("k_proj.weight", range(2, 6), range(8, 12)),
        ("v_proj.weight", range(2, 6), range(12, 16)),
    ]


def test_bytes_are_counted_at_each_sides_width() -> None:
    plan = shard_plan(decoder(tied=True), 1)
    num_values = 19 * 6 + 6 + 2 * (6 + 18 * 2 * 6 + 6 * 28 + 6 + 34 * 6 + 6 * 17)
    files = {name: replace(tensor, dtype="F32") for name, tensor in checkpoint(plan).items()}
    assert plan.rank(0).target_bytes(2) == 2 * num_values
    assert plan.rank(0).source_bytes(files) == 4 * num_values


def test_a_checkpoint_with_just_what_is_needed_passes() -> None:
    for biases, tied, dtype in product((False, True), (False, True), DTYPE_BYTES):
        plan = shard_plan(decoder(biases=biases, tied=tied), 2)
        plan.check({name: replace(tensor, dtype=dtype) for name, tensor in checkpoint(plan).items()})


def test_saved_rotary_tables_and_a_tied_output_layer_do_no_harm() -> None:
    plan = shard_plan(decoder(tied=True), 2)
    plan.check(
        checkpoint(plan)
        | {"model.layers.0.self_attn.rotary_emb.inv_freq": info((1,), "U8"), "lm_head.weight": info((19, 6))}
    )


QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({QUERY: None}, rf"lacks tensor {QUERY} \[28, 6\]$"),
        ({QUERY: None, "model.norm.weight": None}, rf"lacks tensor {QUERY} \[28, 6\] and 1 more$"),
        ({QUERY: None}, r"^folder lacks tensor "),
        (
            {QUERY: info((28, 7))},
            rf"^folder/model.safetensors: tensor {QUERY} must have shape \[28, 6\], found \[28, 7\]",
        ),
        (
            {QUERY: info((28, 6), "I64")},
            rf"^folder/model.safetensors: tensor {QUERY} must be one of {', '.join(DTYPE_BYTES)}, found I64",
        ),
        ({"x": info((2,), "I64")}, r"^folder has tensor x \[2\], which"),
        ({QUERY: info((28, 6), "F8_E4M3")}, rf"^folder is quantised \(tensor {QUERY} is F8_E4M3\)"),
        (
            {QUERY: None, QUERY.replace(".weight", ".qweight"): info((1, 28), "I32")},
            r"^folder is quantised \(tensor .*q_proj.qweight is I32\); only unquantised weights are supp",
        ),
        (
            {QUERY: info((84, 1), "U8"), f"{QUERY}.absmax": info((3,), "F32")},
            r"^folder is quantised \(tensor .*q_proj.weight is U8\)",
        ),
        (
            {QUERY.replace("weight", "bias"): info((28,))},
            r"has tensor .*q_proj.bias \[28\], which a llama model with this config.json does not use",
        ),
        ({"lm_head.bias": info((19,)), "x": info((2,))}, r"has tensor lm_head.bias \[19\] and 1 more, which"),
    ],
)
def test_missing_left_over_and_misshapen_tensors_are_named(
    change: dict[str, TensorInfo | None], message: str
) -> None:
    plan = shard_plan(decoder(), 2)
    files = {name: tensor for name, tensor in (checkpoint(plan) | change).items() if tensor is not None}
    with pytest.raises(ModelError, match=message):
        plan.check(files)


def test_more_ranks_than_mlp_columns_or_vocabulary_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"tp must be at most 17 \(the model's MLP size 17\), got 18"):
        shard_plan(decoder(18, 18), 18)
    with pytest.raises(ConfigError, match=r"tp must be at most 2 \(the model's vocabulary 2\), got 3"):
        shard_plan(replace(decoder(), vocab_size=2), 3)
