"""What an engine is handed: the ranks that execute its plans. It never knows where they live."""

from typing import Protocol

from headway.core.errors import HeadwayError
from headway.core.step import StepPlan, StepResult


class Ranks(Protocol):
    """All ranks of a replica, as one. Steps come back in the order in which they were launched."""

    def launch(self, plan: StepPlan) -> None:
        """Start `plan` on every rank. May return before it is done; raises ReplicaError."""

    def collect(self) -> StepResult:
        """Wait for the oldest launched step. Raises ReplicaError, naming rank and step."""

    def close(self) -> None:
        """Let every rank end. Safe to call twice."""


def describe_failure(rank: int, error: Exception) -> str:
    """What went wrong on `rank`, as a client may see it: named once, and of a bug no more than its type."""
    text = str(error) if isinstance(error, HeadwayError) else type(error).__name__
    return text if text.startswith((f"rank {rank}:", f"rank {rank} ")) else f"rank {rank}: {text}"
