"""What several families read alike: activations, fields spelled in two ways, fields with one value alone."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from headway.core.errors import ModelError, shorten
from headway.model.families.fields import Config, choice, integer, layer_types
from headway.model.spec import Activation

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "gelu": Activation.GELU,
        "gelu_python": Activation.GELU,
        "gelu_new": Activation.GELU_TANH,
        "gelu_fast": Activation.GELU_TANH,
        "gelu_pytorch_tanh": Activation.GELU_TANH,
        "gelu_python_tanh": Activation.GELU_TANH,
        "silu": Activation.SILU,
        "swish": Activation.SILU,
    }
)
SLIDING, FULL = "sliding_attention", "full_attention"  # kinds of layers


def activation(config: Config, name: str, default: str) -> Activation:
    """That of an MLP without a gate, under any name that transformers has for it."""
    return ACTIVATIONS[choice(config, name, tuple(ACTIVATIONS), default)]


def spelled(config: Config, names: Mapping[str, str]) -> Config:
    """`config` with fields under the usual name for those under the family's own (`names`: usual, own).

    transformers takes both; ModelError where they contradict each other.
    """
    found = dict(config)
    for usual, own in names.items():
        given = [config[name] for name in (own, usual) if config.get(name) is not None]
        if len(given) == 2 and given[0] != given[1]:
            raise ModelError(
                f"config.json: {own} and {usual} must be the same, got {shorten(given[0])} and "
                f"{shorten(given[1])}"
            )
        if given:
            found[usual] = given[0]
    return found


def section(config: Config, name: str) -> Config:
    """The object in field `name`; an empty one where there is none."""
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"config.json: {name} must be an object, got {shorten(value)}")
    return value or {}


def windows(
    config: Config, num_layers: int, pattern: tuple[str, ...], *, default: int
) -> tuple[int | None, ...]:
    """Each layer's window, if it has one: as `layer_types` says, or else `pattern`, layer by layer in turn.

    default: the window of a config that has no field for it.
    """
    if config.get("layer_types") is not None:
        pattern = (SLIDING, FULL)
    kinds = layer_types(config, num_layers, pattern)
    if SLIDING not in kinds:
        return (None,) * num_layers
    if config.get("sliding_window", default) is None:
        raise ModelError(
            f"config.json: sliding_window must be an integer where layers are {SLIDING}, got None"
        )
    window = integer(config, "sliding_window", default)
    return tuple(window if kind == SLIDING else None for kind in kinds)


def width_of_head(hidden_size: int, num_heads: int) -> int:
    """Of heads that share out the hidden size."""
    if hidden_size % num_heads:
        raise ModelError(
            f"config.json: the hidden size must be a multiple of the {num_heads} heads, got {hidden_size}"
        )
    return hidden_size // num_heads


def only(config: Config, values: Mapping[str, Any]) -> None:
    """Raise ModelError unless each field has the one value that is supported, or none."""
    for name, value in values.items():
        found = config.get(name)
        if found is not None and found != value:
            raise ModelError(f"config.json: {name} must be {json.dumps(value)}, got {shorten(found)}")
