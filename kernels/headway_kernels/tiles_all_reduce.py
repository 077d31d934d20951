"""Ways and tile sizes of `all_reduce`, as `tiles` has them for the rest: reasoned, not swept."""

from dataclasses import dataclass

from headway_kernels.tiles import padded


@dataclass(frozen=True, kw_only=True, slots=True)
class ShotTile:
    """words: of 8 bytes, that a program in one shot sends or adds up at a time; no fewer than threads."""

    words: int
    num_warps: int

    @property
    def num_threads(self) -> int:
        return 32 * self.num_warps


# Bytes a rank may send in one shot beyond what it would send in two: about what NVLink carries (450 GB/s a
# way on an H200) in the time that the second exchange takes.
SHOT_EXTRA_BYTES = 1 << 20
MOST_WORDS = 2048  # of a tile: four a thread
LEAST_WORDS = 128  # a word for each thread of four warps


def in_one_shot(num_bytes: int, world_size: int) -> bool:
    """Whether an all-reduce goes in one shot: it sends n - 1 times the bytes, two shots 2 (n - 1) / n."""
    extra = num_bytes * (world_size - 1) * (world_size - 2) // world_size
    return extra <= SHOT_EXTRA_BYTES


def shot_tile(num_words: int, num_programs: int) -> ShotTile:
    """A tile a program, unless that is more than two words for each thread."""
    words = min(max(padded(-(-num_words // num_programs)), LEAST_WORDS), MOST_WORDS // 2)
    return ShotTile(words=words, num_warps=min(words // 32, 16))


def row_tile(num_words: int) -> ShotTile | None:
    """A tile for a row; None for a row of more than MOST_WORDS."""
    words = max(padded(num_words), LEAST_WORDS)
    return ShotTile(words=words, num_warps=min(words // 32, 16)) if words <= MOST_WORDS else None
