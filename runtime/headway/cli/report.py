"""What a start took and what it gave, as tables on stdout."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headway.cli.table import print_table
from headway.cli.units import format_bytes

if TYPE_CHECKING:
    from headway.cluster.gang import Replica


def print_start(replicas: "Sequence[Replica]", ray_seconds: float) -> None:
    """Start-up phases of each replica, and what each rank holds."""
    phases = list(replicas[0].phases)
    print_table(
        "Start-up, seconds",
        ("replica", "ray", *phases),
        [
            (str(index), f"{ray_seconds:.2f}", *(f"{replica.phases[phase]:.2f}" for phase in phases))
            for index, replica in enumerate(replicas)
        ],
    )
    print_table(
        "Ranks",
        ("rank", "weights", "layers see", "pages", "a page", "pool", "tokens"),
        [
            (
                f"{index}.{rank}",
                format_bytes(shard.weight_bytes),
                f"{group.window:,}" if group.window else "all",
                f"{num_pages:,}",
                format_bytes(group.page_bytes),
                format_bytes(num_pages * group.page_bytes),
                f"{num_pages * replica.info.page_size:,}",
            )
            for index, replica in enumerate(replicas)
            for rank, shard in enumerate(replica.shards)
            for group, num_pages in zip(shard.groups, replica.num_pages, strict=True)
        ],
    )
    for index, replica in enumerate(replicas):
        for rank, shard in enumerate(replica.shards):
            agreed = " here, fewer on another rank" if shard.num_pages != replica.num_pages else ""
            print_line(f"Memory of rank {index}.{rank}: {shard.budget}{agreed}")


def print_line(text: str) -> None:
    """One plain line on stdout, at once."""
    print(text, flush=True)  # noqa: T201


def print_piece(text: str) -> None:
    """Part of a line on stdout, at once."""
    print(text, end="", flush=True)  # noqa: T201
