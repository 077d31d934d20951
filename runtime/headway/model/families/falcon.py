"""Falcon (arXiv 2311.16867) in its three forms: 7B (one KV head, attention beside the MLP), 40B (grouped KV
heads, a norm for each of the two) and RW (as many KV heads as queries, ALiBi, one after the other).

All store query, key and value in one tensor, a KV head's group after another.
"""

from collections.abc import Mapping
from typing import Any

from headway.core.errors import ModelError
from headway.model.families.alibi import alibi_slopes
from headway.model.families.fields import choice, dtype, eos_ids, flag, integer, number
from headway.model.families.rope import context, rope
from headway.model.families.shared import width_of_head
from headway.model.spec import Activation, DecoderSpec, LayerSpec, Norm
from headway.model.stored import Order, Stored, Weights

ARCHITECTURES = ("FalconForCausalLM",)
PREFIX = "transformer."
HARMLESS = (r".*\.rotary_emb\.inv_freq", r".*\.rotary\.inv_freq")


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "falcon"; raises ModelError."""
    choice(config, "activation", ("gelu",), "gelu")
    hidden_size = integer(config, "hidden_size")
    num_q_heads = integer(config, "num_attention_heads", high=1024)
    head_dim = width_of_head(hidden_size, num_q_heads)
    vocab_size = integer(config, "vocab_size")
    new, bias = flag(config, "new_decoder_architecture"), flag(config, "bias")
    parallel = new or flag(config, "parallel_attn", True)
    num_norms = integer(config, "num_ln_in_parallel_attn", 2 if new else 1, high=2)
    if num_norms == 2 and not new:
        raise ModelError("config.json: num_ln_in_parallel_attn must be 1 without new_decoder_architecture")
    one_kv_head = not new and flag(config, "multi_query", True)
    alibi = flag(config, "alibi")
    rotary = None if alibi else rope(config, head_dim)
    return DecoderSpec(
        family="falcon",
        hidden_size=hidden_size,
        num_q_heads=num_q_heads,
        num_kv_heads=1 if one_kv_head else integer(config, "num_kv_heads", num_q_heads, high=1024),
        head_dim=head_dim,
        mlp_size=integer(config, "ffn_hidden_size", 4 * hidden_size),
        vocab_size=vocab_size,
        max_model_len=context(config, rotary) if rotary else integer(config, "max_position_embeddings", 2048),
        layers=(LayerSpec(),) * integer(config, "num_hidden_layers", high=4096),
        rope=rotary,
        # scores are divided by the root of head_dim after ALiBi is added, so the slopes are as well
        alibi_slopes=tuple(x * head_dim**-0.5 for x in alibi_slopes(num_q_heads)) if alibi else (),
        norm=Norm.LAYER,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        norm_bias=True,
        parallel=parallel,
        shared_norm=parallel and num_norms == 1,
        activation=Activation.GELU,
        gated=False,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        tied_head=flag(config, "tie_word_embeddings", True),
        dtype=dtype(config),
        eos_token_ids=eos_ids(config, vocab_size),
    )


def weights(spec: DecoderSpec) -> Weights:
    layer = "transformer.h.{i}."
    two_norms = spec.parallel and not spec.shared_norm
    return {
        "embed": "transformer.word_embeddings",
        "layers.{i}.attn_norm": layer + ("ln_attn" if two_norms else "input_layernorm"),
        "layers.{i}.qkv": Stored(layer + "self_attention.query_key_value", order=Order.GROUPS),
        "layers.{i}.o": layer + "self_attention.dense",
        "layers.{i}.mlp_norm": layer + ("ln_mlp" if two_norms else "post_attention_layernorm"),
        "layers.{i}.up": layer + "mlp.dense_h_to_4h",
        "layers.{i}.down": layer + "mlp.dense_4h_to_h",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    }
