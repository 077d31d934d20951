"""The families with LayerNorm and a plain MLP: Falcon, GPT-NeoX, GPT-2, MPT, BLOOM, StarCoder2. Their configs
as published, what is refused, and checkpoints whose names differ from those that transformers saves.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from headway.core.errors import ModelError
from headway.model.checkpoint import read_checkpoint
from headway.model.families.alibi import alibi_slopes
from headway.model.folder import read_spec
from headway.model.loader import load
from headway.model.spec import Activation, DecoderSpec
from headway.model.weights import shard_plan

# Excerpts of published configs, in the spelling of their time.
FALCON = {
    "model_type": "falcon",
    "architectures": ["FalconForCausalLM"],
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "bias": False,
    "hidden_size": 4544,
    "layer_norm_epsilon": 1e-5,
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "num_kv_heads": 71,
    "parallel_attn": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 65024,
}
PYTHIA = {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_act": "gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "eos_token_id": 50256,
    "layer_norm_epsilon": 1e-5,
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
MPT = {
    "model_type": "mpt",
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 16,
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": 6,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    },
    "d_model": 4096,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 65536,
    "n_heads": 32,
    "n_layers": 32,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "torch_dtype": "bfloat16",
    "vocab_size": 50432,
}
BLOOM = {
    "model_type": "bloom",
    "architectures": ["BloomForCausalLM"],
    "apply_residual_connection_post_layernorm": False,
    "layer_norm_epsilon": 1e-5,
    "n_embed": 1024,
    "n_layer": 24,
    "num_attention_heads": 16,
    "offset_alibi": 100,
    "pretraining_tp": 1,
    "seq_length": 2048,
    "slow_but_exact": False,
    "vocab_size": 250880,
}
STARCODER2 = {
    "model_type": "starcoder2",
    "architectures": ["Starcoder2ForCausalLM"],
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "max_position_embeddings": 16384,
    "mlp_type": "default",
    "norm_epsilon": 1e-5,
    "norm_type": "layer_norm",
    "num_attention_heads": 24,
    "num_hidden_layers": 30,
    "num_key_value_heads": 2,
    "rope_theta": 999999.4420358813,
    "sliding_window": 4096,
    "use_bias": True,
    "vocab_size": 49152,
}


def make_spec(folder: Path, config: dict[str, Any], **changes: Any) -> DecoderSpec:
    (folder / "config.json").write_text(json.dumps(config | changes))
    return read_spec(folder)


def attn_config(**changes: Any) -> dict[str, Any]:
    return {"attn_config": {**MPT["attn_config"], **changes}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "config", [FALCON, PYTHIA, GPT2, MPT, BLOOM, STARCODER2], ids=lambda x: x["model_type"]
)
def test_a_published_config_means_what_transformers_takes_it_to_mean(
    config: dict[str, Any], tmp_path: Path
) -> None:
    spec = make_spec(tmp_path, config)
    native = {"architectures": None, "attn_config": None} if config is MPT else {}
    theirs = AutoConfig.for_model(**(config | native))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    sources = shard_plan(spec, 1).sources
    renamed = {"embed_out.weight": "lm_head.weight"}
    assert {renamed.get(name, name): shape for name, shape in sources.items()} == {
        name: tuple(weight.shape) for name, weight in model.named_parameters()
    }


def test_older_spellings_are_read(tmp_path: Path) -> None:
    pythia = make_spec(tmp_path, PYTHIA, rotary_emb_base=5e4)
    assert pythia.rope is not None
    assert (pythia.rope.theta, pythia.rope.dim, pythia.dtype) == (5e4, 16, "float16")
    rope = {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_type": "default"}
    newer = make_spec(tmp_path, PYTHIA, rope_parameters=rope)
    assert newer.rope is not None
    assert (newer.rope.theta, newer.rope.dim) == (5e5, 32)
    scaled = make_spec(tmp_path, PYTHIA, rope_scaling={"type": "linear", "factor": 2.0})
    assert scaled.rope is not None
    assert (scaled.rope.factor, scaled.rope.dim, scaled.max_model_len) == (2.0, 16, 4096)
    falcon = make_spec(tmp_path, FALCON, rope_scaling={"type": "dynamic", "factor": 2.0})
    assert (falcon.num_kv_heads, falcon.max_model_len) == (1, 4096)
    bloom = make_spec(tmp_path, BLOOM, n_head=16)
    assert (bloom.hidden_size, bloom.num_q_heads, bloom.max_model_len) == (1024, 16, 2048)


def test_fields_of_the_maths_reach_the_spec(tmp_path: Path) -> None:
    mpt = make_spec(tmp_path, MPT, expansion_ratio=3)
    assert (mpt.clip_qkv, mpt.alibi_slopes[-1], mpt.mlp_size) == (6.0, 2.0**-16, 3 * 4096)
    assert (mpt.norm_bias, mpt.learned_positions, mpt.scale) == (False, False, 128**-0.5)
    assert make_spec(tmp_path, MPT, **attn_config(softmax_scale=0.2)).scale == 0.2
    assert make_spec(tmp_path, GPT2, scale_attn_weights=False).scale == 1
    assert make_spec(tmp_path, GPT2, n_inner=51).mlp_size == 51
    assert make_spec(tmp_path, PYTHIA, hidden_act="gelu_fast").activation is Activation.GELU_TANH
    assert not make_spec(tmp_path, PYTHIA, attention_bias=False).qkv_bias
    starcoder = make_spec(tmp_path, STARCODER2, use_bias=False)
    assert (starcoder.norm_bias, starcoder.mlp_bias, starcoder.windows) == (True, False, (4096,))
    assert make_spec(tmp_path, STARCODER2, sliding_window=None).windows == (None,)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (FALCON, {"hidden_size": 4545}, "hidden size must be a multiple of the 71 heads, got 4545"),
        (FALCON, {"hidden_size": 2, "alibi": True}, "hidden size must be a multiple of the 71 heads, got 2"),
        (FALCON, {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn must be 1 without new_decoder"),
        (PYTHIA, {"hidden_act": "relu"}, "hidden_act must be one of gelu, .*, got 'relu'"),
        (PYTHIA, {"rotary_pct": 0.05}, "rotary dim must be even"),
        (PYTHIA, {"rope_scaling": {"type": "axial"}}, "rope_type must be one of .*, got 'axial'"),
        (PYTHIA, {"num_attention_heads": 7}, "hidden size must be a multiple of the 7 heads, got 512"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx must be false, got True"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention must be false, got True"),
        (GPT2, {"num_attention_heads": 6}, "n_head and num_attention_heads must be the same, got 12 and 6"),
        (MPT, {"no_bias": False}, "no_bias must be true, got False"),
        (MPT, {"logit_scale": "inv_sqrt_d_model"}, "logit_scale must be null, got 'inv_sqrt_d_model'"),
        (MPT, {"norm_type": "rmsnorm"}, "norm_type must be one of .*, got 'rmsnorm'"),
        (MPT, {"ffn_config": {"ffn_type": "mptglu"}}, "ffn_type must be \"mptmlp\", got 'mptglu'"),
        (MPT, {"attn_config": "alibi"}, "attn_config must be an object, got 'alibi'"),
        (MPT, attn_config(alibi=False), "alibi must be true, got False"),
        (MPT, attn_config(qk_ln=True), "qk_ln must be false, got True"),
        (MPT, attn_config(prefix_lm=True), "prefix_lm must be false, got True"),
        (MPT, attn_config(attn_type="multiquery_attention"), 'attn_type must be "multihead_attention", got'),
        (MPT, attn_config(attn_uses_sequence_id=True), "attn_uses_sequence_id must be false, got True"),
        (MPT, attn_config(clip_qkv=-1), "clip_qkv must be a positive number, got -1"),
        (BLOOM, {"apply_residual_connection_post_layernorm": True}, "post_layernorm must be false, got True"),
        (BLOOM, {"slow_but_exact": True}, "slow_but_exact must be false, got True"),
        (STARCODER2, {"norm_type": "rms_norm"}, "norm_type must be \"layer_norm\", got 'rms_norm'"),
        (STARCODER2, {"sliding_window": 0}, "sliding_window must be an integer from 1"),
        (STARCODER2, {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    config: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        make_spec(tmp_path, config, **changes)


@settings(deadline=None)
@given(num_heads=st.integers(1, 130), max_bias=st.integers(1, 16))
def test_slopes_are_those_of_transformers_for_any_number_of_heads(num_heads: int, max_bias: int) -> None:
    mpt = build_mpt_alibi_tensor(num_heads, 2, max_bias)
    steps = mpt[:, 0, 1] - mpt[:, 0, 0]
    torch.testing.assert_close(torch.tensor(alibi_slopes(num_heads, max_bias=max_bias)), steps)
    bloom = build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(torch.tensor(alibi_slopes(num_heads)), bloom, rtol=1e-5, atol=0)


TINY = {"vocab_size": 61, "num_attention_heads": 5, "num_hidden_layers": 2, "eos_token_id": None}
MASK = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
BUFFERS = {
    "gpt2": ("h.{}.attn.bias", "h.{}.attn.masked_bias"),
    "gpt_neox": (
        "gpt_neox.layers.{}.attention.bias",
        "gpt_neox.layers.{}.attention.masked_bias",
        "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
    ),
    "bloom": (),
}


@pytest.mark.parametrize("model_type", BUFFERS)
def test_a_checkpoint_as_published_gives_the_same_weights(model_type: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(model_type, hidden_size=40, intermediate_size=7, **TINY)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    plan = shard_plan(read_spec(tmp_path), 3)
    saved = load(tmp_path, plan, 1, device="cpu", dtype=torch.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    published = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    buffers = {name.format(layer): MASK.clone() for name in BUFFERS[model_type] for layer in range(2)}
    save_file(published | buffers, tmp_path / "model.safetensors")
    loaded = load(tmp_path, plan, 1, device="cpu", dtype=torch.float32)
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor)


def test_biases_that_the_config_denies_are_not_taken_for_saved_masks(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt_neox", hidden_size=40, intermediate_size=7, **TINY)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    made = json.loads((tmp_path / "config.json").read_text())
    plan = shard_plan(make_spec(tmp_path, made, attention_bias=False), 1)
    with pytest.raises(ModelError, match=r"has tensor .*attention\.dense\.bias \[40\] and 3 more"):
        plan.check(plan.named(read_checkpoint(tmp_path)))
