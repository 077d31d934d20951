"""Contiguous shards of an axis over ranks: MLP columns and vocabulary rows."""

from itertools import pairwise

from headway.core.errors import ConfigError


def split_evenly(size: int, world_size: int, multiple: int = 1, *, name: str = "size") -> tuple[range, ...]:
    """Cut [0, size) into one range a rank, in units of `multiple`; lengths differ by at most one unit.

    Larger shards come last: the last unit may be short, and rank 0 has the extra query heads and the
    leader's work already. Raises ConfigError, naming `name`, unless every rank gets a unit.
    """
    if size < 1 or multiple < 1:
        raise ConfigError(f"{name} and its multiple must be at least 1, got {size} and {multiple}")
    if world_size < 1:
        raise ConfigError(f"tp must be at least 1, got {world_size}")
    num_units = -(-size // multiple)
    if world_size > num_units:
        unit = f"{name} {size}" if multiple == 1 else f"{name} {size} in units of {multiple}"
        raise ConfigError(f"tp must be at most {num_units} ({unit}), got {world_size}")
    small, num_large = divmod(num_units, world_size)
    first_large = world_size - num_large
    cuts = [rank * small + max(0, rank - first_large) for rank in range(world_size + 1)]
    bounds = [min(cut * multiple, size) for cut in cuts]
    return tuple(range(start, stop) for start, stop in pairwise(bounds))
