"""Fields of a config.json, each checked as it is read; a wrong one is a ModelError that names it.

A field that is absent or null takes its default; without one it must be there. Where null means that there
is none of it, `optional_...` tells the two apart.
"""

import sys
from collections.abc import Mapping
from typing import Any

from headway.core.errors import ModelError, shorten

Config = Mapping[str, Any]
DTYPES = ("float32", "float16", "bfloat16")


def integer(config: Config, name: str, default: int | None = None, *, high: int = 1 << 31) -> int:
    value = _value(config, name, default)
    if type(value) is not int or not 1 <= value <= high:
        raise _wrong(name, f"an integer from 1 to {high}", value)
    return value


def number(config: Config, name: str, default: float | None = None) -> float:
    value = _value(config, name, default)
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise _wrong(name, "a positive number", value)
    return float(value)


def flag(config: Config, name: str, default: bool = False) -> bool:
    value = _value(config, name, default)
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def choice(config: Config, name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
    value = _value(config, name, default)
    if not isinstance(value, str) or value not in allowed:
        raise _wrong(name, f"one of {', '.join(allowed)}", value)
    return value


def index(config: Config, name: str, default: int) -> int:
    """A number that counts from 0."""
    value = _value(config, name, default)
    if not _is_index(value):
        raise _wrong(name, "an integer from 0", value)
    return int(value)


def indices(config: Config, name: str) -> frozenset[int]:
    """A list of numbers that count from 0; empty where there is none."""
    value = _value(config, name, [])
    if not isinstance(value, list) or not all(map(_is_index, value)):
        raise _wrong(name, "a list of integers from 0", value)
    return frozenset(value)


def optional_integer(config: Config, name: str, absent: int | None = None) -> int | None:
    """None where the field is null; `absent` where there is none."""
    return absent if name not in config else None if config[name] is None else integer(config, name)


def optional_number(config: Config, name: str, absent: float | None = None) -> float | None:
    """None where the field is null; `absent` where there is none."""
    return absent if name not in config else None if config[name] is None else number(config, name)


def numbers(config: Config, name: str) -> tuple[float, ...]:
    """A list of positive numbers."""
    value = _value(config, name, None)
    if not isinstance(value, list):
        raise _wrong(name, "a list of numbers", value)
    return tuple(number({name: one}, name) for one in value)


def layer_types(config: Config, num_layers: int, pattern: tuple[str, ...]) -> tuple[str, ...]:
    """What kind each layer is, of those in `pattern`, which is repeated where the config does not say."""
    value = config.get("layer_types")
    if value is None:
        return tuple(pattern[layer % len(pattern)] for layer in range(num_layers))
    if not isinstance(value, list) or len(value) != num_layers or not set(value) <= set(pattern):
        raise _wrong("layer_types", f"{num_layers} of {', '.join(dict.fromkeys(pattern))}", value)
    return tuple(value)


def dtype(config: Config) -> str:
    """The checkpoint's dtype; older configs call it torch_dtype."""
    name = "dtype" if config.get("dtype") is not None else "torch_dtype"
    return choice(config, name, DTYPES, "float32")


def eos_ids(config: Config, vocab_size: int) -> tuple[int, ...]:
    """The end-of-sequence ids: none, one or a list."""
    value = config.get("eos_token_id")
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise _wrong("eos_token_id", f"ids from 0 to {vocab_size - 1} (vocab_size)", value)
    return tuple(dict.fromkeys(ids))


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0


def _value(config: Config, name: str, default: Any) -> Any:
    value = config.get(name)
    if value is None and default is None:
        raise ModelError(f"config.json lacks {name}")
    return default if value is None else value


def _wrong(name: str, limit: str, value: object) -> ModelError:
    return ModelError(f"config.json: {name} must be {limit}, got {shorten(value)}")
