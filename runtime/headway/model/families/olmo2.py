"""OLMo 2 (arXiv 2501.00656): Llama with norms behind attention and MLP, and over all queries and all keys."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headway.model.families import llama
from headway.model.spec import DecoderSpec, QkNorm
from headway.model.stored import Weights

ARCHITECTURES = ("Olmo2ForCausalLM",)
PREFIX, HARMLESS = llama.PREFIX, llama.HARMLESS
DEFAULTS = MappingProxyType({"rms_norm_eps": 1e-5})
WEIGHTS: Weights = MappingProxyType(
    {
        **llama.WEIGHTS,
        "layers.{i}.q_norm": "model.layers.{i}.self_attn.q_norm",
        "layers.{i}.k_norm": "model.layers.{i}.self_attn.k_norm",
        "layers.{i}.attn_post_norm": "model.layers.{i}.post_attention_layernorm",
        "layers.{i}.mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
    }
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "olmo2"; raises ModelError."""
    like = llama.spec({**DEFAULTS, **config, "mlp_bias": False})
    return replace(like, family="olmo2", pre_norm=False, post_norm=True, qk_norm=QkNorm.ALL)


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
