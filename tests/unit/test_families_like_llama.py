"""What the configs of Qwen2, Qwen3, Qwen3-MoE, Mixtral, OLMo 2 and Phi-3 say, as published and as refused."""

from typing import Any

import pytest
from transformers import AutoConfig

from headway.core.errors import ModelError
from headway.model.families import FAMILIES
from headway.model.spec import DecoderSpec, QkNorm, Rope, RopeKind
from headway.model.weights import shard_plan

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 50,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
NAMES = ("qwen2", "qwen3", "qwen3_moe", "mixtral", "olmo2", "phi3")
FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = {"use_sliding_window": True, "sliding_window": 7}
LONGROPE = {"short_factor": [1.0, 1.5], "long_factor": [1.0, 3.0]}


def spec(name: str, **config: Any) -> DecoderSpec:
    return FAMILIES[name].spec(SIZES | config)


def windows(name: str, **config: Any) -> list[int | None]:
    return [layer.window for layer in spec(name, **config).layers]


@pytest.mark.parametrize("name", NAMES)
def test_fields_that_a_config_lacks_are_those_of_transformers(name: str) -> None:
    theirs = AutoConfig.for_model(name, **SIZES)
    ours = spec(name)
    assert ours.max_model_len == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tied_head == theirs.tie_word_embeddings
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 8)
    assert ours.rope == Rope(theta=theirs.rope_parameters["rope_theta"], dim=ours.head_dim)
    assert set(ours.windows) == {theirs.sliding_window if name != "olmo2" else None}
    if ours.experts is not None:
        assert ours.experts.num_experts == theirs.num_experts
        assert ours.experts.top_k == theirs.num_experts_per_tok
        assert ours.experts.mlp_size == getattr(theirs, "moe_intermediate_size", 50)


@pytest.mark.parametrize("name", [*NAMES[:2], "mixtral", *NAMES[4:]])
def test_key_value_heads_that_are_null_are_as_many_as_query_heads(name: str) -> None:
    assert spec(name, num_key_value_heads=None).num_kv_heads == 6


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_window_begins_at_max_window_layers_unless_layer_types_says_otherwise(name: str) -> None:
    assert windows(name, sliding_window=7, max_window_layers=1) == [None] * 4
    assert windows(name, **WINDOW) == [None] * 4
    assert windows(name, **WINDOW, max_window_layers=0) == [7] * 4
    assert windows(name, **WINDOW, max_window_layers=3) == [None, None, None, 7]
    kinds = [SLIDING, FULL, FULL, SLIDING]
    assert windows(name, **WINDOW, max_window_layers=3, layer_types=kinds) == [7, None, None, 7]
    assert windows(name, use_sliding_window=True, sliding_window=None, max_window_layers=0) == [None] * 4


def test_every_layer_of_qwen3_moe_has_the_window() -> None:
    assert windows("qwen3_moe", **WINDOW) == [7] * 4
    assert windows("qwen3_moe", sliding_window=7) == [None] * 4


def test_qwen3_moe_has_experts_in_every_nth_layer_but_those_listed() -> None:
    def sparse(**config: Any) -> list[bool]:
        return [layer.sparse for layer in spec("qwen3_moe", **config).layers]

    assert sparse() == [True] * 4
    assert sparse(mlp_only_layers=[0, 2]) == [False, True, False, True]
    assert sparse(decoder_sparse_step=2) == [False, True, False, True]
    assert sparse(decoder_sparse_step=2, mlp_only_layers=[3]) == [False, True, False, False]


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_the_number_of_experts_has_two_names(name: str) -> None:
    for field in ("num_experts", "num_local_experts"):
        experts = spec(name, **{field: 11}).experts
        assert experts is not None
        assert experts.num_experts == 11


def test_biases_are_where_each_family_has_them() -> None:
    assert (spec("qwen2").qkv_bias, spec("qwen2").o_bias) == (True, False)
    for name in ("qwen3", "qwen3_moe", "olmo2"):
        biased = spec(name, attention_bias=True)
        assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias) == (True, True, False)
    for name in ("mixtral", "phi3"):
        assert not spec(name, attention_bias=True, mlp_bias=True).qkv_bias


def test_olmo2_norms_all_heads_together_and_qwen3_each() -> None:
    assert spec("olmo2").qk_norm is QkNorm.ALL
    assert spec("qwen3").qk_norm is spec("qwen3_moe").qk_norm is QkNorm.HEAD


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_phi3_calls_longrope_by_three_names(field: str, kind: str) -> None:
    config = {"partial_rotary_factor": 0.5, "rope_theta": 2e4, "max_position_embeddings": 16_384}
    found = spec("phi3", **config, **{field: {"type": kind, **LONGROPE}})
    assert found.max_model_len == 16_384
    rope = found.rope
    assert rope is not None
    assert (rope.kind, rope.dim, rope.theta) == (RopeKind.LONGROPE, 4, 2e4)
    assert (rope.original_max_len, rope.factor) == (4096, 4.0)
    assert (rope.short_factors, rope.long_factors) == ((1.0, 1.5), (1.0, 3.0))


def test_names_of_published_checkpoints_are_expected() -> None:
    expected = {
        "qwen2": {"model.layers.0.self_attn.q_proj.bias": (48,)},
        "qwen3": {"model.layers.3.self_attn.k_norm.weight": (8,)},
        "qwen3_moe": {
            "model.layers.1.mlp.gate.weight": (128, 48),
            "model.layers.1.mlp.experts.127.down_proj.weight": (48, 768),
        },
        "mixtral": {
            "model.layers.1.block_sparse_moe.gate.weight": (8, 48),
            "model.layers.1.block_sparse_moe.experts.7.w1.weight": (50, 48),
            "model.layers.1.block_sparse_moe.experts.7.w2.weight": (48, 50),
            "model.layers.1.block_sparse_moe.experts.7.w3.weight": (50, 48),
        },
        "olmo2": {
            "model.layers.2.self_attn.q_norm.weight": (48,),
            "model.layers.2.self_attn.k_norm.weight": (16,),
            "model.layers.2.post_feedforward_layernorm.weight": (48,),
        },
        "phi3": {
            "model.layers.2.self_attn.qkv_proj.weight": (80, 48),
            "model.layers.2.mlp.gate_up_proj.weight": (100, 48),
        },
    }
    for name, tensors in expected.items():
        sources = shard_plan(spec(name, head_dim=8), 1).sources
        assert tensors.items() <= sources.items()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act must be one of silu, got 'gelu'"),
        ({"num_key_value_heads": 4}, "must be a multiple of num_key_value_heads"),
        ({"rope_scaling": {"type": "mrope"}}, "rope_type must be one of .*, got 'mrope'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, got 0"),
    ],
)
def test_what_no_family_can_do_is_refused(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        spec(name, **config)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("qwen2", {"layer_types": [SLIDING] * 4}, "layer_types must all be full_attention"),
        ("qwen2", WINDOW | {"layer_types": [FULL]}, "layer_types must be 4 of full_attention, sliding"),
        ("qwen2", WINDOW | {"layer_types": ["linear_attention"] * 4}, "layer_types must be 4 of"),
        ("qwen2", WINDOW | {"max_window_layers": -1}, "max_window_layers must be an integer from 0, got -1"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window must be true or false, got 1"),
        ("qwen3", WINDOW | {"sliding_window": 0}, "sliding_window must be an integer from 1"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        ("qwen3_moe", {"mlp_only_layers": [None]}, "mlp_only_layers must be a list of integers from 0"),
        ("qwen3_moe", {"mlp_only_layers": 3}, "mlp_only_layers must be a list of integers from 0, got 3"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step must be an integer from 1"),
        ("qwen3_moe", {"num_experts": 0}, "num_experts must be an integer from 1"),
        ("qwen3_moe", {"num_experts_per_tok": 200}, "experts a token must be from 1 to 128, got 200"),
        ("qwen3_moe", {"norm_topk_prob": "yes"}, "norm_topk_prob must be true or false, got 'yes'"),
        ("mixtral", {"num_experts_per_tok": 9}, "experts a token must be from 1 to 8, got 9"),
        ("mixtral", {"sliding_window": "all"}, "sliding_window must be an integer from 1"),
        (
            "phi3",
            {"rope_scaling": {"type": "linear", "factor": 2}},
            "default or longrope for phi3, got 'linear'",
        ),
        ("phi3", {"rope_scaling": {"type": "su", **LONGROPE}}, "short_factor must have 4 numbers, got 2"),
        ("phi3", {"partial_rotary_factor": 0.4}, "rotary dim must be even and at most 8, got 3"),
        ("phi3", {"rope_scaling": "su"}, "rope_scaling must be one object"),
    ],
)
def test_what_a_family_cannot_do_is_refused(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        spec(name, **config)
