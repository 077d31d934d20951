"""Mixtral (arXiv 2401.04088): Mistral with experts instead of the MLP."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headway.model.families import llama
from headway.model.families.fields import integer, optional_integer
from headway.model.spec import DecoderSpec, Experts, LayerSpec
from headway.model.stored import Weights

ARCHITECTURES = ("MixtralForCausalLM",)
PREFIX, HARMLESS = llama.PREFIX, llama.HARMLESS
DEFAULTS = MappingProxyType(
    {
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    }
)
EXPERT = "model.layers.{i}.block_sparse_moe.experts.{e}."
WEIGHTS: Weights = MappingProxyType(
    {
        **llama.WEIGHTS,
        "layers.{i}.router": "model.layers.{i}.block_sparse_moe.gate",
        "layers.{i}.experts.gate": EXPERT + "w1",
        "layers.{i}.experts.up": EXPERT + "w3",
        "layers.{i}.experts.down": EXPERT + "w2",
    }
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "mixtral"; raises ModelError."""
    like = llama.spec({**DEFAULTS, **config, "attention_bias": False, "mlp_bias": False})
    layer = LayerSpec(window=optional_integer(config, "sliding_window"), sparse=True)
    return replace(
        like,
        family="mixtral",
        layers=(layer,) * like.num_layers,
        experts=Experts(
            num_experts=integer(config, "num_local_experts", integer(config, "num_experts", 8)),
            top_k=integer(config, "num_experts_per_tok", 2),
            mlp_size=like.mlp_size,
        ),
    )


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
