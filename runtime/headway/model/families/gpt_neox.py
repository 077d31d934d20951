"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): attention beside the MLP, each with a norm of
its own; a part of each head is rotated; query, key and value of a head lie together in one tensor.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from headway.model.families.fields import dtype, eos_ids, flag, integer, number
from headway.model.families.rope import DEFAULT_THETA, context, rope, rotary_part
from headway.model.families.shared import activation, width_of_head
from headway.model.spec import DecoderSpec, LayerSpec, Norm
from headway.model.stored import Order, Stored, Weights

ARCHITECTURES = ("GPTNeoXForCausalLM",)
PREFIX = "gpt_neox."
WEIGHTS: Weights = MappingProxyType(
    {
        "embed": "gpt_neox.embed_in",
        "layers.{i}.attn_norm": "gpt_neox.layers.{i}.input_layernorm",
        "layers.{i}.qkv": Stored("gpt_neox.layers.{i}.attention.query_key_value", order=Order.GROUPS),
        "layers.{i}.o": "gpt_neox.layers.{i}.attention.dense",
        "layers.{i}.mlp_norm": "gpt_neox.layers.{i}.post_attention_layernorm",
        "layers.{i}.up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
        "layers.{i}.down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
        "norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    }
)
HARMLESS = (r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\.inv_freq")  # saved masks and tables


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "gpt_neox"; raises ModelError."""
    hidden_size = integer(config, "hidden_size")
    num_heads = integer(config, "num_attention_heads", high=1024)
    head_dim = width_of_head(hidden_size, num_heads)
    vocab_size = integer(config, "vocab_size")
    bias = flag(config, "attention_bias", True)
    names = {  # transformers 4 has the family's own
        **config,
        "rope_theta": number(config, "rotary_emb_base", DEFAULT_THETA),
        "partial_rotary_factor": number(config, "rotary_pct", 0.25),
    }
    rotary = rope(names, int(head_dim * rotary_part(names)), partial=True)
    return DecoderSpec(
        family="gpt_neox",
        hidden_size=hidden_size,
        num_q_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        mlp_size=integer(config, "intermediate_size"),
        vocab_size=vocab_size,
        max_model_len=context(config, rotary),
        layers=(LayerSpec(),) * integer(config, "num_hidden_layers", high=4096),
        rope=rotary,
        norm=Norm.LAYER,
        norm_eps=number(config, "layer_norm_eps", 1e-5),
        norm_bias=True,
        parallel=flag(config, "use_parallel_residual", True),
        qkv_bias=bias,
        o_bias=bias,
        activation=activation(config, "hidden_act", "gelu"),
        gated=False,
        mlp_bias=True,
        tied_head=flag(config, "tie_word_embeddings"),
        dtype=dtype(config),
        eos_token_ids=eos_ids(config, vocab_size),
    )


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
