"""Llama (arXiv 2302.13971) and models of its form: RMS norm, SwiGLU, rotary embedding, MHA or GQA."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from headway.model.families.fields import choice, dtype, eos_ids, flag, integer, number
from headway.model.families.rope import context, rope
from headway.model.spec import DecoderSpec, LayerSpec
from headway.model.stored import Weights

ARCHITECTURES = ("LlamaForCausalLM",)
PREFIX = "model."
WEIGHTS: Weights = MappingProxyType(
    {
        "embed": "model.embed_tokens",
        "layers.{i}.attn_norm": "model.layers.{i}.input_layernorm",
        "layers.{i}.q": "model.layers.{i}.self_attn.q_proj",
        "layers.{i}.k": "model.layers.{i}.self_attn.k_proj",
        "layers.{i}.v": "model.layers.{i}.self_attn.v_proj",
        "layers.{i}.o": "model.layers.{i}.self_attn.o_proj",
        "layers.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
        "layers.{i}.gate": "model.layers.{i}.mlp.gate_proj",
        "layers.{i}.up": "model.layers.{i}.mlp.up_proj",
        "layers.{i}.down": "model.layers.{i}.mlp.down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    }
)
HARMLESS = (r".*\.rotary_emb\.inv_freq",)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "llama"; raises ModelError."""
    choice(config, "hidden_act", ("silu",), "silu")
    hidden_size = integer(config, "hidden_size")
    num_q_heads = integer(config, "num_attention_heads", high=1024)
    head_dim = integer(config, "head_dim", hidden_size // num_q_heads, high=4096)
    vocab_size = integer(config, "vocab_size")
    rotary = rope(config, head_dim)
    return DecoderSpec(
        family="llama",
        hidden_size=hidden_size,
        num_q_heads=num_q_heads,
        num_kv_heads=integer(config, "num_key_value_heads", num_q_heads, high=1024),
        head_dim=head_dim,
        mlp_size=integer(config, "intermediate_size"),
        vocab_size=vocab_size,
        max_model_len=context(config, rotary),
        layers=(LayerSpec(),) * integer(config, "num_hidden_layers", high=4096),
        rope=rotary,
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        qkv_bias=flag(config, "attention_bias"),
        o_bias=flag(config, "attention_bias"),
        mlp_bias=flag(config, "mlp_bias"),
        tied_head=flag(config, "tie_word_embeddings"),
        dtype=dtype(config),
        eos_token_ids=eos_ids(config, vocab_size),
    )


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
