"""GPT-2: learned positions, and matrices stored as [in, out]. Published checkpoints have names without the
first word, and saved causal masks.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from headway.model.families.fields import dtype, eos_ids, flag, integer, number
from headway.model.families.shared import activation, only, spelled, width_of_head
from headway.model.spec import DecoderSpec, LayerSpec, Norm
from headway.model.stored import Stored, Weights

ARCHITECTURES = ("GPT2LMHeadModel",)
PREFIX = "transformer."
WEIGHTS: Weights = MappingProxyType(
    {
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "layers.{i}.attn_norm": "transformer.h.{i}.ln_1",
        "layers.{i}.qkv": Stored("transformer.h.{i}.attn.c_attn", transposed=True),
        "layers.{i}.o": Stored("transformer.h.{i}.attn.c_proj", transposed=True),
        "layers.{i}.mlp_norm": "transformer.h.{i}.ln_2",
        "layers.{i}.up": Stored("transformer.h.{i}.mlp.c_fc", transposed=True),
        "layers.{i}.down": Stored("transformer.h.{i}.mlp.c_proj", transposed=True),
        "norm": "transformer.ln_f",
        "head": "lm_head",
    }
)
HARMLESS = (r".*\.attn\.(masked_)?bias",)
NAMES = MappingProxyType(
    {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "n_positions",
    }
)
ONLY = MappingProxyType({"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False})


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "gpt2"; raises ModelError.

    `reorder_and_upcast_attn` is about rounding alone: scores are computed in float32 either way.
    """
    only(config, ONLY)
    config = spelled(config, NAMES)
    hidden_size = integer(config, "hidden_size")
    num_heads = integer(config, "num_attention_heads", high=1024)
    vocab_size = integer(config, "vocab_size")
    return DecoderSpec(
        family="gpt2",
        hidden_size=hidden_size,
        num_q_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width_of_head(hidden_size, num_heads),
        mlp_size=integer(config, "n_inner", 4 * hidden_size),
        vocab_size=vocab_size,
        max_model_len=integer(config, "max_position_embeddings", 1024),
        layers=(LayerSpec(),) * integer(config, "num_hidden_layers", high=4096),
        learned_positions=True,
        norm=Norm.LAYER,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        norm_bias=True,
        qkv_bias=True,
        o_bias=True,
        attention_scale=0.0 if flag(config, "scale_attn_weights", True) else 1.0,
        activation=activation(config, "activation_function", "gelu_new"),
        gated=False,
        mlp_bias=True,
        tied_head=flag(config, "tie_word_embeddings", True),
        dtype=dtype(config),
        eos_token_ids=eos_ids(config, vocab_size),
    )


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
