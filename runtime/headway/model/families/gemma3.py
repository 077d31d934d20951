"""Gemma 3 with images (arXiv 2503.19786): its text decoder alone; tensors that see images are not read."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headway.model.families import gemma3_text
from headway.model.families.shared import only, section
from headway.model.spec import DecoderSpec
from headway.model.stored import Weights

ARCHITECTURES = ("Gemma3ForConditionalGeneration",)
PREFIX = ""
HARMLESS = (*gemma3_text.HARMLESS, r"vision_tower\..*", r"multi_modal_projector\..*")
WEIGHTS: Weights = MappingProxyType(
    {part: f"language_model.{name}" for part, name in gemma3_text.WEIGHTS.items()}
)
OUTER = ("dtype", "torch_dtype", "eos_token_id", "tie_word_embeddings")  # said of the model as a whole


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The text decoder of a config.json with model_type "gemma3"; raises ModelError."""
    outer = {name: config[name] for name in OUTER if config.get(name) is not None}
    text = {**section(config, "text_config"), "tie_word_embeddings": True, **outer}
    only(text, {"model_type": "gemma3_text"})
    return replace(gemma3_text.spec(text), family="gemma3")


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
