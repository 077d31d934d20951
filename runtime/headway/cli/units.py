"""Sizes in bytes, as users write and read them."""

import re

from headway.core.errors import ConfigError, shorten

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}
SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?I?)B?")


def parse_bytes(name: str, text: str) -> int:
    """Bytes of a size such as 80GiB, 512M or 1000; ConfigError, naming `name`, for anything else."""
    match = SIZE.fullmatch(text.strip().upper())
    if match is None or match[2] not in UNITS or float(match[1]) <= 0:
        raise ConfigError(f"{name} must be a positive size such as 80GiB or 500MB, got {shorten(text)}")
    return int(float(match[1]) * UNITS[match[2]])


def format_bytes(size: float) -> str:
    """`size` in the binary unit that keeps it short."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
