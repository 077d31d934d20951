"""Qwen3 (arXiv 2505.09388): Llama with a norm on each head's queries and keys."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headway.model.families import llama, qwen2
from headway.model.spec import DecoderSpec, QkNorm
from headway.model.stored import Weights

ARCHITECTURES = ("Qwen3ForCausalLM",)
PREFIX, HARMLESS = llama.PREFIX, llama.HARMLESS
DEFAULTS = MappingProxyType({**qwen2.DEFAULTS, "head_dim": 128})
WEIGHTS: Weights = MappingProxyType(
    {
        **llama.WEIGHTS,
        "layers.{i}.q_norm": "model.layers.{i}.self_attn.q_norm",
        "layers.{i}.k_norm": "model.layers.{i}.self_attn.k_norm",
    }
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "qwen3"; raises ModelError."""
    like = llama.spec({**DEFAULTS, **config, "mlp_bias": False})
    layers = qwen2.layers(config, like.num_layers)
    return replace(like, family="qwen3", layers=layers, qk_norm=QkNorm.HEAD)


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
