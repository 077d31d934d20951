"""Gemma 3 (arXiv 2503.19786), its text decoder: Gemma 2 with a norm on each head's queries and keys instead
of soft-capped scores, and a rotary embedding of their own for layers with a window, which are five in six.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headway.core.errors import ModelError, shorten
from headway.model.families import gemma2, qwen3
from headway.model.families.fields import integer, number
from headway.model.families.rope import rope
from headway.model.families.shared import FULL, SLIDING, only, section, windows
from headway.model.spec import DecoderSpec, LayerSpec, QkNorm
from headway.model.stored import Weights

ARCHITECTURES = ("Gemma3ForCausalLM",)
PREFIX, HARMLESS = gemma2.PREFIX, gemma2.HARMLESS
DEFAULTS = MappingProxyType(
    {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
        "final_logit_softcapping": None,
    }
)
THETA = MappingProxyType({FULL: 1e6, SLIDING: 1e4})  # where the config has none
WEIGHTS: Weights = MappingProxyType({**qwen3.WEIGHTS, **gemma2.WEIGHTS})


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "gemma3_text"; raises ModelError."""
    only(config, {"use_bidirectional_attention": False, "attn_logit_softcapping": None})
    config = {**DEFAULTS, **config, "attn_logit_softcapping": None}
    wide, local = (_with_rope(config, kind) for kind in (FULL, SLIDING))
    like = gemma2.spec(wide)
    local_rope = rope(local, like.head_dim)
    pattern = (SLIDING,) * (integer(config, "sliding_window_pattern", 6) - 1) + (FULL,)
    each = windows(config, like.num_layers, pattern, default=4096)
    return replace(
        like,
        family="gemma3_text",
        layers=tuple(LayerSpec(window=window, rope=local_rope if window else None) for window in each),
        max_model_len=integer(config, "max_position_embeddings"),  # with what scaling adds
        qk_norm=QkNorm.HEAD,
    )


def _with_rope(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """`config` with the rotary embedding of one kind of layers for all.

    Older configs have the scaling of layers without a window in rope_scaling, and the base of those with one
    in rope_local_base_freq.
    """
    each = section(config, "rope_parameters")
    if not each.keys() <= THETA.keys():
        raise ModelError(
            f"config.json: rope_parameters must have {' and '.join(THETA)} alone, got {shorten(list(each))}"
        )
    theta = number(config, "rope_theta" if kind == FULL else "rope_local_base_freq", THETA[kind])
    return {
        **config,
        "rope_scaling": section(config, "rope_scaling") if kind == FULL else None,
        "rope_parameters": section(each, kind),
        "rope_theta": theta,
    }


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
