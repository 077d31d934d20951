"""Mistral (arXiv 2310.06825): Llama whose queries see a window of positions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headway.model.families import llama
from headway.model.families.fields import optional_integer
from headway.model.spec import DecoderSpec, LayerSpec
from headway.model.stored import Weights

ARCHITECTURES = ("MistralForCausalLM",)
PREFIX, HARMLESS = llama.PREFIX, llama.HARMLESS
WINDOW = 4096  # where the config has no such field; null means none


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "mistral"; raises ModelError."""
    like = llama.spec({**config, "attention_bias": False, "mlp_bias": False})
    layer = LayerSpec(window=optional_integer(config, "sliding_window", WINDOW))
    return replace(like, family="mistral", layers=(layer,) * like.num_layers)


def weights(spec: DecoderSpec) -> Weights:
    return llama.WEIGHTS
