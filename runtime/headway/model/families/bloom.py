"""BLOOM (arXiv 2211.05100): ALiBi, a norm of the embedding, query, key and value of a head together in one
tensor. Published checkpoints have names without the first word.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from headway.model.families.alibi import alibi_slopes
from headway.model.families.fields import dtype, eos_ids, flag, integer, number
from headway.model.families.shared import only, spelled, width_of_head
from headway.model.spec import Activation, DecoderSpec, LayerSpec, Norm
from headway.model.stored import Order, Stored, Weights

ARCHITECTURES = ("BloomForCausalLM",)
PREFIX = "transformer."
WEIGHTS: Weights = MappingProxyType(
    {
        "embed": "transformer.word_embeddings",
        "embed_norm": "transformer.word_embeddings_layernorm",
        "layers.{i}.attn_norm": "transformer.h.{i}.input_layernorm",
        "layers.{i}.qkv": Stored("transformer.h.{i}.self_attention.query_key_value", order=Order.GROUPS),
        "layers.{i}.o": "transformer.h.{i}.self_attention.dense",
        "layers.{i}.mlp_norm": "transformer.h.{i}.post_attention_layernorm",
        "layers.{i}.up": "transformer.h.{i}.mlp.dense_h_to_4h",
        "layers.{i}.down": "transformer.h.{i}.mlp.dense_4h_to_h",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    }
)
HARMLESS = ()
NAMES = MappingProxyType(
    {"hidden_size": "n_embed", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
)
ONLY = MappingProxyType(
    {
        "apply_residual_connection_post_layernorm": False,
        "slow_but_exact": False,  # with it transformers leaves biases out
    }
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "bloom"; raises ModelError."""
    only(config, ONLY)
    config = spelled(config, NAMES)
    hidden_size = integer(config, "hidden_size")
    num_heads = integer(config, "num_attention_heads", high=1024)
    vocab_size = integer(config, "vocab_size")
    return DecoderSpec(
        family="bloom",
        hidden_size=hidden_size,
        num_q_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width_of_head(hidden_size, num_heads),
        mlp_size=4 * hidden_size,
        vocab_size=vocab_size,
        max_model_len=integer(config, "seq_length", 2048),  # as trained; transformers has no such field
        layers=(LayerSpec(),) * integer(config, "num_hidden_layers", high=4096),
        alibi_slopes=alibi_slopes(num_heads),
        norm=Norm.LAYER,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        norm_bias=True,
        embed_norm=True,
        qkv_bias=True,
        o_bias=True,
        activation=Activation.GELU_TANH,
        gated=False,
        mlp_bias=True,
        tied_head=flag(config, "tie_word_embeddings", True),
        dtype=dtype(config),
        eos_token_ids=eos_ids(config, vocab_size),
    )


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
