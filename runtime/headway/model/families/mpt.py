"""MPT (https://www.databricks.com/blog/mpt-7b): ALiBi, and no biases, not even in the norms.

Fields mean what they mean in the model's own code (github.com/mosaicml/llm-foundry); transformers leaves some
aside (alibi_bias_max, expansion_ratio) and computes as if they had their defaults.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from headway.model.families.alibi import alibi_slopes
from headway.model.families.fields import (
    choice,
    dtype,
    eos_ids,
    flag,
    integer,
    number,
    optional_number,
)
from headway.model.families.shared import only, section, spelled, width_of_head
from headway.model.spec import Activation, DecoderSpec, LayerSpec, Norm
from headway.model.stored import Weights

ARCHITECTURES = ("MptForCausalLM", "MPTForCausalLM")  # transformers' name, and that of published configs
PREFIX = "transformer."
WEIGHTS: Weights = MappingProxyType(
    {
        "embed": "transformer.wte",
        "layers.{i}.attn_norm": "transformer.blocks.{i}.norm_1",
        "layers.{i}.qkv": "transformer.blocks.{i}.attn.Wqkv",
        "layers.{i}.o": "transformer.blocks.{i}.attn.out_proj",
        "layers.{i}.mlp_norm": "transformer.blocks.{i}.norm_2",
        "layers.{i}.up": "transformer.blocks.{i}.ffn.up_proj",
        "layers.{i}.down": "transformer.blocks.{i}.ffn.down_proj",
        "norm": "transformer.norm_f",
        "head": "lm_head",
    }
)
HARMLESS = ()
NAMES = MappingProxyType(
    {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
)
ONLY = MappingProxyType(
    {"no_bias": True, "logit_scale": None, "final_logit_softcapping": None, "block_overrides": None}
)
ONLY_ATTENTION = MappingProxyType(
    {
        "attn_type": "multihead_attention",
        "prefix_lm": False,
        "attn_uses_sequence_id": False,
        "alibi": True,  # so learned_pos_emb, which it overrules, has no effect
        "rope": False,
        "qk_ln": False,
        "qk_gn": False,
        "sliding_window_size": -1,
        "attn_logit_softcapping": None,
    }
)
ONLY_FFN = MappingProxyType(
    {
        "ffn_type": "mptmlp",
        "ffn_hidden_size": None,
        "ffn_act_fn": {"name": "gelu", "approximate": "none"},
    }
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "mpt"; raises ModelError."""
    attention = section(config, "attn_config")
    only(config, ONLY)
    only(attention, ONLY_ATTENTION)
    only(section(config, "ffn_config"), ONLY_FFN)
    choice(config, "norm_type", ("low_precision_layernorm", "layernorm"), "low_precision_layernorm")
    config = spelled(config, NAMES)
    hidden_size = integer(config, "hidden_size")
    num_heads = integer(config, "num_attention_heads", high=1024)
    vocab_size = integer(config, "vocab_size")
    return DecoderSpec(
        family="mpt",
        hidden_size=hidden_size,
        num_q_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width_of_head(hidden_size, num_heads),
        mlp_size=integer(config, "expansion_ratio", 4) * hidden_size,
        vocab_size=vocab_size,
        max_model_len=integer(config, "max_seq_len", 2048),
        layers=(LayerSpec(),) * integer(config, "num_hidden_layers", high=4096),
        alibi_slopes=alibi_slopes(num_heads, max_bias=number(attention, "alibi_bias_max", 8.0)),
        norm=Norm.LAYER,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        attention_scale=optional_number(attention, "softmax_scale") or 0.0,
        clip_qkv=optional_number(attention, "clip_qkv"),
        activation=Activation.GELU,
        gated=False,
        tied_head=flag(config, "tie_word_embeddings", True),
        dtype=dtype(config),
        eos_token_ids=eos_ids(config, vocab_size),
    )


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
