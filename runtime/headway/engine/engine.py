"""The step loop of one replica: plan, launch, collect, commit. Requests in, token events out."""

import logging

from headway.core.errors import HeadwayError, ReplicaUnavailable
from headway.core.request import EngineRequest, FinishReason, Load, ReplicaInfo, TokenEvent
from headway.engine.ranks import Ranks
from headway.scheduler.scheduler import Scheduler

log = logging.getLogger(__name__)


class Engine:
    """Not thread-safe: `engine.loop` gives it a thread of its own, `headway.LLM` calls it directly."""

    def __init__(self, *, scheduler: Scheduler, ranks: Ranks, info: ReplicaInfo) -> None:
        self.info = info
        self._scheduler = scheduler
        self._ranks = ranks
        self._failure: ReplicaUnavailable | None = None

    @property
    def has_work(self) -> bool:
        return self._scheduler.num_unfinished > 0

    @property
    def failure(self) -> ReplicaUnavailable | None:
        """Why this replica is out of service; there is no way back."""
        return self._failure

    @property
    def load(self) -> Load:
        return self._scheduler.load()

    def submit(self, request: EngineRequest) -> None:
        """Raises InvalidRequest, DuplicateRequest, or ReplicaUnavailable after a failed step."""
        if self._failure is not None:
            raise ReplicaUnavailable(str(self._failure))
        self._scheduler.add(request)

    def abort(self, request_id: str) -> TokenEvent | None:
        """Free the request's pages now; its terminal event, or None if no such request is running."""
        before = self.load
        if not self._scheduler.abort(request_id):
            return None
        after = self.load
        told = after.num_pages == before.num_pages  # or else another group of layers is the tightest now
        return TokenEvent(
            request_id=request_id,
            finish_reason=FinishReason.ABORT,
            num_pages_freed=after.free_pages - before.free_pages if told else None,
        )

    def step(self) -> list[TokenEvent]:
        """One step for every request that fits it. A failed step ends all of them with a retryable error."""
        try:
            plan = self._scheduler.plan()
            if plan is None:
                return []
            self._ranks.launch(plan)
            return self._scheduler.commit(self._ranks.collect())
        except Exception as error:  # whatever it was, ranks and scheduler no longer agree
            return self.drop_all(self.fail("step", error))

    def fail(self, what: str, error: Exception) -> ReplicaUnavailable:
        """Be out of service, as `what` has failed: nothing of this replica can be trusted any more.

        Returns what its requests are to be told: the first failure, and of a bug no more than its type.
        """
        log.error("%s failed; the replica is out of service", what, exc_info=error)
        text = str(error) if isinstance(error, HeadwayError) else type(error).__name__
        self._failure = self._failure or ReplicaUnavailable(f"the replica's {what} failed: {text}")
        return self._failure

    def drop_all(self, error: HeadwayError) -> list[TokenEvent]:
        """End every request with `error`; their terminal events."""
        return [TokenEvent.failed(request_id, error) for request_id in self._scheduler.drop_all()]

    def check(self) -> None:
        """Page integrity: free + cached + live == total, in every group. O(pages); raises IntegrityError."""
        self._scheduler.check()

    def close(self) -> None:
        self._ranks.close()
