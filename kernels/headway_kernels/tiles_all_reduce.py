"""Ways and tile sizes of `all_reduce`, as `tiles` has them for the rest: reasoned, not swept."""

from dataclasses import dataclass

from headway_kernels.tiles import padded


@dataclass(frozen=True, kw_only=True, slots=True)
class ShotTile:
    """words: of 4 bytes of data, that a program of `all_reduce` in one shot sends and adds up at a time."""

    words: int
    num_warps: int


# Bytes a rank may send in one shot beyond what it would send in two: about what NVLink carries (450 GB/s a
# way on an H200) in the time that the second exchange takes.
SHOT_EXTRA_BYTES = 1 << 20
SENT_IN_REGISTERS = 16  # 8-byte words a thread, of all senders together


def in_one_shot(num_bytes: int, world_size: int) -> bool:
    """Whether an all-reduce goes in one shot: it sends 2 (n - 1) times the bytes, two shots 2 (n - 1) / n."""
    extra = 2 * num_bytes * (world_size - 1) ** 2 // world_size
    return extra <= SHOT_EXTRA_BYTES


def shot_tile(num_words: int, num_programs: int) -> ShotTile:
    """A tile a program; two words a thread, which are one 16-byte access, as long as there are threads."""
    words = max(padded(-(-num_words // num_programs)), 256)
    return ShotTile(words=words, num_warps=min(words // 64, 16))


def row_tile(num_words: int) -> ShotTile:
    """The same for a program that has a row of its own."""
    words = max(padded(num_words), 256)
    return ShotTile(words=words, num_warps=min(words // 64, 16))
