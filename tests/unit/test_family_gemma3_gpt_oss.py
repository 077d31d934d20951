"""What the configs of Gemma 3 and gpt-oss say, as published in old and new spelling, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from headway.core.errors import ModelError
from headway.model.families import FAMILIES
from headway.model.folder import read_spec
from headway.model.spec import DecoderSpec, Rope, RopeKind
from headway.model.weights import shard_plan

FULL, SLIDING = "full_attention", "sliding_attention"
# Excerpts of published configs, in the spelling of their time.
GEMMA3_TEXT: dict[str, Any] = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "vocab_size": 262144,
}
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
GEMMA_DEFAULTS = {"model_type": "gemma3_text"}
MXFP4 = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}


def spec(config: dict[str, Any], **changes: Any) -> DecoderSpec:
    return FAMILIES[config["model_type"]].spec(config | changes)


def in_folder(folder: Path, config: dict[str, Any], **changes: Any) -> DecoderSpec:
    (folder / "config.json").write_text(json.dumps(config | changes))
    return read_spec(folder)


@pytest.mark.parametrize(
    "config", [GEMMA3_TEXT, GEMMA_DEFAULTS, GPT_OSS], ids=["gemma3", "defaults", "gpt-oss"]
)
def test_a_published_config_means_what_transformers_takes_it_to_mean(
    config: dict[str, Any], tmp_path: Path
) -> None:
    ours = in_folder(tmp_path, config)
    theirs = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    assert shard_plan(ours, 1).sources == {
        name: tuple(weight.shape) for name, weight in model.named_parameters()
    }
    windows = [theirs.sliding_window if kind == SLIDING else None for kind in theirs.layer_types]
    assert [layer.window for layer in ours.layers] == windows
    assert ours.max_model_len == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    again = json.loads(theirs.to_json_string())
    assert spec(again | {"architectures": None, "dtype": ours.dtype, "eos_token_id": None}) == ours


def test_layers_of_gemma_3_with_a_window_have_a_rope_of_their_own() -> None:
    old = spec(GEMMA3_TEXT, rope_scaling={"type": "linear", "factor": 8.0}, rope_local_base_freq=2e4)
    wide = Rope(theta=1e6, dim=256, kind=RopeKind.LINEAR, factor=8.0)
    assert old.ropes == (Rope(theta=2e4, dim=256), wide)
    assert old.layer_ropes[:7] == (0, 0, 0, 0, 0, 1, 0)
    parameters = {
        FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        SLIDING: {"rope_type": "default", "rope_theta": 2e4},
    }
    bare = {name: value for name, value in GEMMA3_TEXT.items() if not name.startswith("rope_")}
    assert spec(bare, rope_parameters=parameters) == old


def test_the_scaling_of_gemma_3_is_within_its_stated_context() -> None:
    assert spec(GEMMA3).max_model_len == 131072


def test_the_pattern_of_windows_is_that_of_layer_types_if_there_are_any() -> None:
    assert [bool(layer.window) for layer in spec(GEMMA3_TEXT, sliding_window_pattern=2).layers[:4]] == [
        1,
        0,
    ] * 2
    assert spec(GEMMA3_TEXT, sliding_window_pattern=1).windows == (None,)
    kinds = [FULL, SLIDING] * 13
    listed = spec(GEMMA3_TEXT, sliding_window_pattern=1, layer_types=kinds)
    assert [layer.window for layer in listed.layers] == [None, 512] * 13
    assert spec(GEMMA3_TEXT, layer_types=[FULL] * 26, sliding_window=None).windows == (None,)


def test_a_gemma_3_that_sees_images_is_served_for_its_text() -> None:
    ours = spec(GEMMA3)
    assert (ours.num_q_heads, ours.num_kv_heads, ours.vocab_size) == (8, 4, 262_208)
    assert (ours.dtype, ours.eos_token_ids, ours.tied_head) == ("bfloat16", (1, 106), True)
    assert all(name.startswith("language_model.model.") for name in shard_plan(ours, 1).sources)


def test_gpt_oss_without_rope_fields_has_its_own() -> None:
    bare = {name: value for name, value in GPT_OSS.items() if not name.startswith("rope_")}
    assert spec(bare) == spec(GPT_OSS)
    plain = spec(GPT_OSS, rope_scaling=None, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    assert plain.rope == Rope(theta=1e4, dim=64)


def test_the_experts_of_gpt_oss_are_limited_as_the_config_says() -> None:
    ours = spec(GPT_OSS, swiglu_limit=5.0, swiglu_alpha=1.5)
    assert (ours.clamp, ours.alpha) == (5.0, 1.5)
    assert (spec(GPT_OSS).clamp, spec(GPT_OSS).alpha) == (7.0, 1.702)


def test_a_checkpoint_in_mxfp4_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is quantised \('mxfp4'\); only unquantised weights are supported"):
        in_folder(tmp_path, GPT_OSS, **MXFP4)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            GEMMA3_TEXT,
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention must be false, got",
        ),
        (
            GEMMA3_TEXT | {"model_type": "gemma2"},
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention must be false, got True",
        ),
        (GEMMA3_TEXT, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be null, got 50.0"),
        (GEMMA3_TEXT, {"hidden_activation": "gelu"}, "hidden_activation must be one of gelu_pytorch_tanh"),
        (GEMMA3_TEXT, {"sliding_window": None}, "sliding_window must be an integer where layers are"),
        (GEMMA3_TEXT, {"sliding_window_pattern": 0}, "sliding_window_pattern must be an integer from 1"),
        (GEMMA3_TEXT, {"layer_types": ["chunked_attention"] * 26}, "layer_types must be 26 of sliding_atten"),
        (GEMMA3_TEXT, {"rope_scaling": {"rope_type": "mrope"}}, "rope_type must be one of .*, got 'mrope'"),
        (GEMMA3_TEXT, {"rope_scaling": "linear"}, "rope_scaling must be an object, got 'linear'"),
        (GEMMA3_TEXT, {"rope_parameters": {"rope_theta": 1e6}}, "must have full_attention and sliding_atten"),
        (GEMMA3_TEXT, {"rope_parameters": {SLIDING: {"rope_type": "su"}}}, "rope_type must be one of .*'su'"),
        (
            GEMMA3_TEXT,
            {
                "rope_scaling": {"type": "linear", "factor": 8.0},
                "rope_parameters": {FULL: {"rope_theta": 1e6}},
            },
            "rope_scaling must say what rope_parameters says",
        ),
        (GEMMA3_TEXT, {"rope_local_base_freq": 0}, "rope_local_base_freq must be a positive number, got"),
        (GEMMA3_TEXT, {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar must be a positive number"),
        (GEMMA3, {"text_config": {"model_type": "gemma3n_text"}}, 'model_type must be "gemma3_text", got'),
        (GEMMA3, {"text_config": 3}, "text_config must be an object, got 3"),
        (GPT_OSS, {"sliding_window": None}, "sliding_window must be an integer where layers are"),
        (GPT_OSS, {"hidden_act": "gelu"}, "hidden_act must be one of silu, got 'gelu'"),
        (GPT_OSS, {"swiglu_limit": 0}, "swiglu_limit must be a positive number, got 0"),
        (GPT_OSS, {"num_experts_per_tok": 33}, "experts a token must be from 1 to 32, got 33"),
        (GPT_OSS, {"rope_scaling": {"rope_type": "ntk"}}, "rope_type must be one of .*, got 'ntk'"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        spec(config, **changes)
