"""gpt-oss (arXiv 2508.10925): experts with biases and a clamped SwiGLU, attention sinks, a window in every
other layer.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headway.model.families import llama
from headway.model.families.fields import integer, number
from headway.model.families.shared import FULL, SLIDING, windows
from headway.model.spec import Activation, DecoderSpec, Experts, LayerSpec
from headway.model.stored import Order, Stored, Weights

ARCHITECTURES = ("GptOssForCausalLM",)
PREFIX, HARMLESS = llama.PREFIX, llama.HARMLESS
DEFAULTS = MappingProxyType(
    {
        "head_dim": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150_000.0,
        "attention_bias": True,
    }
)
YARN = MappingProxyType(  # where the config says nothing of scaling
    {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
)
EXPERTS = "model.layers.{i}.mlp.experts."
WEIGHTS: Weights = MappingProxyType(
    {
        **llama.WEIGHTS,
        "layers.{i}.sinks": Stored("model.layers.{i}.self_attn.sinks", weight=""),
        "layers.{i}.router": "model.layers.{i}.mlp.router",
        "layers.{i}.experts.gate_up": Stored(
            EXPERTS + "gate_up_proj", Order.TURNS, transposed=True, weight="", bias="_bias"
        ),
        "layers.{i}.experts.down": Stored(EXPERTS + "down_proj", transposed=True, weight="", bias="_bias"),
    }
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "gpt_oss"; raises ModelError."""
    config = {**DEFAULTS, **config, "mlp_bias": False}
    if not config.get("rope_scaling") and config.get("rope_parameters") is None:
        config["rope_scaling"] = dict(YARN)
    like = llama.spec(config)
    each = windows(config, like.num_layers, (SLIDING, FULL), default=128)
    return replace(
        like,
        family="gpt_oss",
        layers=tuple(LayerSpec(window=window, sparse=True) for window in each),
        sinks=True,
        activation=Activation.CLAMPED_SILU,
        clamp=number(config, "swiglu_limit", 7.0),
        alpha=number(config, "swiglu_alpha", 1.702),
        experts=Experts(
            num_experts=integer(config, "num_local_experts", integer(config, "num_experts", 128)),
            top_k=integer(config, "num_experts_per_tok", 4),
            mlp_size=like.mlp_size,
            router_bias=True,
            bias=True,
        ),
    )


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
