"""Qwen2, Qwen2.5 (arXiv 2407.10671): Llama with biases on query, key and value, a window on some layers."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headway.core.errors import ModelError
from headway.model.families import llama
from headway.model.families.fields import flag, index, layer_types, optional_integer
from headway.model.spec import DecoderSpec, LayerSpec
from headway.model.stored import Weights

ARCHITECTURES = ("Qwen2ForCausalLM",)
PREFIX, HARMLESS = llama.PREFIX, llama.HARMLESS
DEFAULTS = MappingProxyType({"max_position_embeddings": 32_768, "num_key_value_heads": 32})
FULL, SLIDING = "full_attention", "sliding_attention"


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "qwen2"; raises ModelError."""
    like = llama.spec({**DEFAULTS, **config, "attention_bias": False, "mlp_bias": False})
    return replace(like, family="qwen2", layers=layers(config, like.num_layers), qkv_bias=True)


def layers(config: Mapping[str, Any], num_layers: int) -> tuple[LayerSpec, ...]:
    """With a window where layer_types says so or, without it, from layer max_window_layers on."""
    window = used_window(config)
    first = num_layers if window is None else index(config, "max_window_layers", 28)
    kinds = [FULL if layer < first else SLIDING for layer in range(num_layers)]
    if config.get("layer_types") is not None:
        kinds = list(layer_types(config, num_layers, (FULL, SLIDING)))
    if window is None and SLIDING in kinds:
        raise ModelError(f"config.json: layer_types must all be {FULL} where no sliding_window is used")
    return tuple(LayerSpec(window=window if kind == SLIDING else None) for kind in kinds)


def used_window(config: Mapping[str, Any]) -> int | None:
    """sliding_window, where use_sliding_window is true."""
    return optional_integer(config, "sliding_window", 4096) if flag(config, "use_sliding_window") else None


def weights(spec: DecoderSpec) -> Weights:
    return llama.WEIGHTS
