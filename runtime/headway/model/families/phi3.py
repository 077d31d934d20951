"""Phi-3 (arXiv 2404.14219) and Phi-4-mini: Llama with fused projections, a window, a head rotated in part."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headway.core.errors import ModelError
from headway.model.families import llama
from headway.model.families.fields import optional_integer
from headway.model.families.rope import rope, rotary_part
from headway.model.spec import DecoderSpec, LayerSpec, Rope, RopeKind
from headway.model.stored import Weights

ARCHITECTURES = ("Phi3ForCausalLM",)
PREFIX, HARMLESS = llama.PREFIX, llama.HARMLESS
DEFAULTS = MappingProxyType(
    {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
)
# what is read here, and what other configs of Llama's form have
NOT_LLAMA = MappingProxyType(
    dict.fromkeys(("rope_scaling", "rope_parameters", "partial_rotary_factor", "attention_bias", "mlp_bias"))
)
FORMER_NAMES = ("su", "yarn")  # of longrope in the first of these configs
WEIGHTS: Weights = MappingProxyType(
    {
        **llama.WEIGHTS,
        "layers.{i}.qkv": "model.layers.{i}.self_attn.qkv_proj",
        "layers.{i}.gate_up": "model.layers.{i}.mlp.gate_up_proj",
    }
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "phi3"; raises ModelError."""
    config = {**DEFAULTS, **config}
    like = llama.spec({**config, **NOT_LLAMA})
    layer = LayerSpec(window=optional_integer(config, "sliding_window"))
    return replace(like, family="phi3", layers=(layer,) * like.num_layers, rope=_rope(config, like.head_dim))


def _rope(config: Mapping[str, Any], head_dim: int) -> Rope:
    present = {name: _present(config.get(name)) for name in ("rope_scaling", "rope_parameters")}
    found = rope({**config, **present}, int(head_dim * rotary_part(config)), partial=True)
    if found.kind not in (RopeKind.DEFAULT, RopeKind.LONGROPE):
        raise ModelError(f"config.json: rope_type must be default or longrope for phi3, got '{found.kind}'")
    return found


def _present(scaling: object) -> object:
    """With the kind under its present name."""
    if not isinstance(scaling, dict):
        return scaling
    former = scaling.get("rope_type", scaling.get("type")) in FORMER_NAMES
    return {**scaling, "rope_type": RopeKind.LONGROPE, "type": None} if former else scaling


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
