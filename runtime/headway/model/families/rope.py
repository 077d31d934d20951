"""The rotary embedding of a config.json, as old and new transformers write it."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from headway.core.errors import ModelError, shorten
from headway.model.families.fields import Config, choice, flag, integer, number, numbers
from headway.model.spec import Rope, RopeKind

DEFAULT_THETA = 10_000.0
LONGEST = 1 << 31


def rope(
    config: Config,
    dim: int,
    *,
    theta: float = DEFAULT_THETA,
    layer_type: str | None = None,
    partial: bool = False,
) -> Rope:
    """`dim`: rotated values a head. Raises ModelError for a kind that is not implemented.

    theta: where the config has none. layer_type: whose parameters, where layers differ in them. partial: the
    family has taken partial_rotary_factor into `dim`; otherwise it must be 1.

    transformers 5 keeps everything in `rope_parameters`; before, `rope_theta` stood beside
    `rope_scaling`, and the kind was first called `type`.
    """
    scaling = _scaling(config, layer_type)
    kind = RopeKind(choice(scaling, "rope_type", tuple(RopeKind), RopeKind.DEFAULT))
    theta = number(scaling, "rope_theta", number(config, "rope_theta", theta))
    if not partial and rotary_part(config) != 1.0:
        raise ModelError("config.json: partial_rotary_factor must be 1 for this family")
    return Rope(theta=theta, dim=dim, kind=kind, **KINDS[kind](scaling, config))


def context(config: Config, scaled: Rope) -> int:
    """Tokens a sequence may have. For some kinds max_position_embeddings is the length before scaling."""
    length = _context(config)
    originals = {
        RopeKind.LINEAR: length,
        RopeKind.DYNAMIC: length,
        RopeKind.YARN: scaled.original_max_len,
    }
    return max(length, int(min(originals.get(scaled.kind, 0) * scaled.factor, LONGEST)))


def rotary_part(config: Config, default: float = 1.0) -> float:
    """The part of each head's values that is rotated."""
    outer = number(config, "partial_rotary_factor", default)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    inner = scaling if isinstance(scaling, dict) else {}
    return number(inner, "partial_rotary_factor", outer)


def _default(scaling: Config, config: Config) -> dict[str, Any]:
    """No scaling, so fields that scale are those of a kind that is not named."""
    for name in ("factor", "short_factor", "long_factor"):
        if scaling.get(name) not in (None, 1):
            raise ModelError(
                f"config.json: rope_type must be a kind that scales where {name} is given "
                f"({shorten(scaling[name])}), got {shorten(scaling['rope_type'])}"
            )
    return {}


def _linear(scaling: Config, config: Config) -> dict[str, Any]:
    return {"factor": number(scaling, "factor")}


def _dynamic(scaling: Config, config: Config) -> dict[str, Any]:
    return {"factor": number(scaling, "factor"), "original_max_len": _context(config)}


def _llama3(scaling: Config, config: Config) -> dict[str, Any]:
    low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
    if low >= high:
        raise ModelError(f"config.json: low_freq_factor must be below high_freq_factor ({high}), got {low}")
    return {
        "factor": number(scaling, "factor"),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_len": _original(scaling, config),
    }


def _yarn(scaling: Config, config: Config) -> dict[str, Any]:
    original = _original(scaling, config)
    factor = number(scaling, "factor", _context(config) / original)
    return {
        "factor": factor,
        "original_max_len": original,
        "attention_factor": number(scaling, "attention_factor", _yarn_attention(scaling, factor)),
        "beta_fast": number(scaling, "beta_fast", 32.0),
        "beta_slow": number(scaling, "beta_slow", 1.0),
        "truncate": flag(scaling, "truncate", True),
    }


def _yarn_attention(scaling: Config, factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return scale(number(scaling, "mscale")) / scale(number(scaling, "mscale_all_dim"))
    return scale(1.0)


def _longrope(scaling: Config, config: Config) -> dict[str, Any]:
    original = _original(scaling, config)
    if original == 1:
        raise ModelError("config.json: original_max_position_embeddings must be above 1 for longrope, got 1")
    factor = number(scaling, "factor", _context(config) / original)
    attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "factor": factor,
        "original_max_len": original,
        "attention_factor": number(scaling, "attention_factor", attention),
        "short_factors": numbers(scaling, "short_factor"),
        "long_factors": numbers(scaling, "long_factor"),
    }


KINDS: Mapping[RopeKind, Callable[[Config, Config], dict[str, Any]]] = MappingProxyType(
    {
        RopeKind.DEFAULT: _default,
        RopeKind.LINEAR: _linear,
        RopeKind.DYNAMIC: _dynamic,
        RopeKind.LLAMA3: _llama3,
        RopeKind.YARN: _yarn,
        RopeKind.LONGROPE: _longrope,
    }
)


def _context(config: Config) -> int:
    return integer(config, "max_position_embeddings", 2048)


def _original(scaling: Config, config: Config) -> int:
    """The context before scaling; Phi-3 has it outside `rope_scaling`."""
    name = "original_max_position_embeddings"
    return integer(config, name, integer(scaling, name, _context(config)))


def _scaling(config: Config, layer_type: str | None) -> dict[str, Any]:
    """`rope_scaling` or `rope_parameters`, with the kind under its present name."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    scaling = config.get(name) or {}
    if isinstance(scaling, dict) and layer_type is not None and layer_type in scaling:
        scaling = scaling[layer_type] or {}
    if not isinstance(scaling, dict) or any(isinstance(value, dict) for value in scaling.values()):
        raise ModelError(f"config.json: {name} must be one object for all layers, got {shorten(scaling)}")
    return {"rope_type": scaling.get("type")} | scaling
