"""Ranks in several processes: the leader runs rank 0 itself and sends every plan to the followers."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence

from headway.core.errors import ReplicaError
from headway.core.step import StepPlan, StepResult
from headway.engine.channel import Connection, broadcast, reports
from headway.engine.codec import decode_plan, encode_plan
from headway.engine.ranks import describe_failure
from headway.worker.rank import PendingStep, Rank

REPORT_WAIT_S = 2.0


class ProcessRanks:
    """Rank 0 here, the others behind the step channel."""

    def __init__(self, rank: Rank, followers: Sequence[Connection]) -> None:
        self._rank = rank
        self._followers = followers
        self._pending: deque[tuple[int, PendingStep]] = deque()

    def launch(self, plan: StepPlan) -> None:
        broadcast(self._followers, encode_plan(plan))
        try:
            self._pending.append((plan.step, self._rank.launch(plan)))
        except Exception as error:
            raise self._failure(plan.step, error) from error

    def collect(self) -> StepResult:
        step, pending = self._pending.popleft()
        try:
            return pending.result()
        except Exception as error:
            raise self._failure(step, error) from error

    def _failure(self, step: int, error: Exception) -> ReplicaError:
        """A follower's report names the cause; what rank 0 sees is often just its echo in a collective."""
        found = reports(self._followers, REPORT_WAIT_S)
        return ReplicaError(f"step {step} failed: {'; '.join([*found, describe_failure(0, error)])}")

    def close(self) -> None:
        for follower in self._followers:
            follower.close()
        self._rank.close()


def watch(followers: Sequence[Connection], on_lost: Callable[[ReplicaError], None]) -> None:
    """Call `on_lost` as soon as a follower leaves or reports trouble, also while no step is due.

    A follower that is well says nothing. What it says is left for `reports`.
    """

    def wait(rank: int, follower: Connection) -> None:
        follower.wait()
        on_lost(ReplicaError(f"rank {rank} left the step channel"))

    for rank, follower in enumerate(followers, start=1):
        threading.Thread(target=wait, args=(rank, follower), name=f"watch-{rank}", daemon=True).start()


def follow(rank: Rank, leader: Connection) -> None:
    """Execute the leader's plans until it closes the channel. On an error: report it, then leave."""
    try:
        while (frame := leader.receive()) is not None:
            plan = decode_plan(frame)
            rank.launch(plan).result()
    except Exception as error:
        with contextlib.suppress(OSError):  # the leader may be gone, too
            leader.send(describe_failure(rank.rank, error).encode())
        raise
    finally:
        leader.close()
        rank.close()
