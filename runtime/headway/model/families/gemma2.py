"""Gemma 2 (arXiv 2408.00118): norms before and after each sub-block, soft-capped scores and logits, a window
in every other layer, an embedding scaled by the root of its width.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headway.model.families import llama
from headway.model.families.fields import choice, flag, number, optional_number
from headway.model.families.shared import FULL, SLIDING, only, windows
from headway.model.spec import Activation, DecoderSpec, LayerSpec
from headway.model.stored import Weights

ARCHITECTURES = ("Gemma2ForCausalLM",)
PREFIX, HARMLESS = llama.PREFIX, llama.HARMLESS
WEIGHTS: Weights = MappingProxyType(
    {
        **llama.WEIGHTS,
        "layers.{i}.attn_post_norm": "model.layers.{i}.post_attention_layernorm",
        "layers.{i}.mlp_norm": "model.layers.{i}.pre_feedforward_layernorm",
        "layers.{i}.mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
    }
)
EVERY_OTHER = (SLIDING, FULL)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "gemma2"; raises ModelError."""
    only(config, {"use_bidirectional_attention": False})
    choice(config, "hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    like = llama.spec({"head_dim": 256, "tie_word_embeddings": True, **config, "hidden_act": "silu"})
    each = windows(config, like.num_layers, EVERY_OTHER, default=4096)
    return replace(
        like,
        family="gemma2",
        layers=tuple(LayerSpec(window=window) for window in each),
        activation=Activation.GELU_TANH,
        norm_offset=1.0,
        post_norm=True,
        embed_scale=like.hidden_size**0.5,
        attention_scale=number(config, "query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=optional_number(config, "attn_logit_softcapping", 50.0),
        logits_softcap=optional_number(config, "final_logit_softcapping", 30.0),
        mlp_bias=False,
        o_bias=flag(config, "attention_bias"),
    )


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
