"""The rotary embedding of a config.json, as old and new transformers write it.

What scales a rotary embedding changes every number behind it, so a field that is not understood here is
refused, never passed over.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from headway.core.errors import ModelError, shorten
from headway.model.families.fields import Config, choice, flag, integer, number, numbers
from headway.model.spec import Rope, RopeKind

DEFAULT_THETA = 10_000.0
LONGEST = 1 << 31
OBJECTS = ("rope_scaling", "rope_parameters")
OF_EVERY_KIND = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
ORIGINAL = "original_max_position_embeddings"


def rope(
    config: Config,
    dim: int,
    *,
    theta: float = DEFAULT_THETA,
    partial: bool = False,
) -> Rope:
    """`dim`: rotated values a head. Raises ModelError for a kind or a field that is not implemented.

    theta: where the config has none. partial: the family has taken partial_rotary_factor into `dim`;
    otherwise it must be 1.

    transformers 5 keeps everything in `rope_parameters`; before, `rope_theta` stood beside
    `rope_scaling`, and the kind was first called `type`.
    """
    name, scaling = _scaling(config)
    kind = RopeKind(choice(scaling, "rope_type", tuple(RopeKind), RopeKind.DEFAULT))
    _check_fields(name, scaling, kind)
    theta = number(scaling, "rope_theta", number(config, "rope_theta", theta))
    if not partial and rotary_part(config) != 1.0:
        raise ModelError("config.json: partial_rotary_factor must be 1 for this family")
    return Rope(theta=theta, dim=dim, kind=kind, **KINDS[kind].read(scaling, config))


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
    for name in NOTHING_SCALED:
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
    if scaling.get("factor") is None and not _has_original(scaling, config):
        raise ModelError(f"config.json: yarn needs factor or {ORIGINAL}, found neither")
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
    if not _has_original(scaling, config):  # where the long factors take over from the short ones
        raise ModelError(f"config.json lacks {ORIGINAL}, which longrope needs")
    original = _original(scaling, config)
    if original == 1:
        raise ModelError(f"config.json: {ORIGINAL} must be above 1 for longrope, got 1")
    factor = number(scaling, "factor", _context(config) / original)
    attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        "factor": factor,
        "original_max_len": original,
        "attention_factor": number(scaling, "attention_factor", attention),
        "short_factors": numbers(scaling, "short_factor"),
        "long_factors": numbers(scaling, "long_factor"),
    }


@dataclass(frozen=True)
class Kind:
    """read: from the object and config.json to what `Rope` has of this kind. fields: that it knows."""

    read: Callable[[Config, Config], dict[str, Any]]
    fields: tuple[str, ...]


NOTHING_SCALED = ("factor", "short_factor", "long_factor")
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL)
YARN = (
    "factor",
    ORIGINAL,
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
)
LONGROPE = ("factor", ORIGINAL, "attention_factor", "short_factor", "long_factor")
KINDS: Mapping[RopeKind, Kind] = MappingProxyType(
    {
        RopeKind.DEFAULT: Kind(_default, NOTHING_SCALED),
        RopeKind.LINEAR: Kind(_linear, ("factor",)),
        RopeKind.DYNAMIC: Kind(_dynamic, ("factor",)),
        RopeKind.LLAMA3: Kind(_llama3, LLAMA3),
        RopeKind.YARN: Kind(_yarn, (*YARN, "finetuned")),  # the authors' own models say how they were made
        RopeKind.LONGROPE: Kind(_longrope, LONGROPE),
    }
)


def _context(config: Config) -> int:
    return integer(config, "max_position_embeddings", 2048)


def _original(scaling: Config, config: Config) -> int:
    """The context before scaling; Phi-3 has it outside `rope_scaling`."""
    return integer(config, ORIGINAL, integer(scaling, ORIGINAL, _context(config)))


def _has_original(scaling: Config, config: Config) -> bool:
    return any(place.get(ORIGINAL) is not None for place in (scaling, config))


def _check_fields(name: str, scaling: Config, kind: RopeKind) -> None:
    """Raise ModelError for a field that this kind does not know."""
    fields = KINDS[kind].fields
    for field, value in scaling.items():
        if value is not None and field not in (*OF_EVERY_KIND, *fields):
            known = ", ".join(fields)
            raise ModelError(
                f"config.json: {name} of rope_type {kind} must have no fields but {known}, "
                f"got {field}: {shorten(value)}"
            )


def _scaling(config: Config) -> tuple[str, dict[str, Any]]:
    """`rope_scaling` or `rope_parameters`, with its name, and the kind under its present name."""
    given = [(name, _object(name, config[name])) for name in OBJECTS if config.get(name)]
    if not given:
        return OBJECTS[0], {"rope_type": None}
    if _complete(config, given[0][1]) != _complete(config, given[-1][1]):
        former, present = (shorten(config[name]) for name in OBJECTS)
        raise ModelError(
            f"config.json: rope_scaling must say what rope_parameters says ({present}), got {former}"
        )
    return given[0]


def _object(name: str, scaling: Any) -> dict[str, Any]:
    if not isinstance(scaling, dict) or any(isinstance(value, dict) for value in scaling.values()):
        raise ModelError(f"config.json: {name} must be one object for all layers, got {shorten(scaling)}")
    former, present = scaling.get("type"), scaling.get("rope_type")
    if None not in (former, present) and former != present:
        raise ModelError(
            f"config.json: {name} must have one kind, got type {shorten(former)} "
            f"and rope_type {shorten(present)}"
        )
    return {**scaling, "rope_type": former if present is None else present}


def _complete(config: Config, scaling: Config) -> dict[str, Any]:
    """`scaling` with what it leaves to the rest of config.json."""
    whole = {name: config.get(name) for name in ("rope_theta", "partial_rotary_factor")} | dict(scaling)
    return {name: value for name, value in whole.items() if name != "type" and value is not None}
