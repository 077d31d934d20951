"""The scheduler's record of one request."""

from dataclasses import dataclass

from headway.core.request import EngineRequest
from headway.core.step import Admission

NEVER = 1 << 62


@dataclass(slots=True, eq=False)
class Sequence:
    """One request between `add` and its end. Compared by identity: an id may be used again later.

    token_ids: what is known, prompt and output.
    num_tokens: known tokens and, behind them, those that launched steps sample and nobody knows yet.
    num_computed: tokens that the plans made so far compute.
    limit: tokens at which the sequence ends. The last one is never computed.
    tables: a page table a group; entry i holds tokens from i * page_size on.
    num_dropped: entries at the start of each table whose pages have left the window. They stay in place.
    num_slots: tokens that the tables have room for; equal in all groups.
    drop_at: num_computed at which the next page leaves a window.
    """

    request: EngineRequest
    arrival: int
    limit: int
    tables: tuple[list[int], ...]
    num_dropped: list[int]
    token_ids: list[int]
    num_tokens: int
    stop_ids: frozenset[int]
    row: int | None = None
    num_computed: int = 0
    num_slots: int = 0
    drop_at: int = NEVER
    num_preempted: int = 0
    ended: bool = False

    @classmethod
    def begin(
        cls, request: EngineRequest, *, arrival: int, num_groups: int, max_model_len: int
    ) -> "Sequence":
        token_ids = [*request.prompt_ids, *request.output_ids]
        return cls(
            request=request,
            arrival=arrival,
            limit=min(max_model_len, len(request.prompt_ids) + request.sampling.max_tokens),
            tables=tuple([] for _ in range(num_groups)),
            num_dropped=[0] * num_groups,
            token_ids=token_ids,
            num_tokens=len(token_ids),
            stop_ids=frozenset(request.stop_token_ids),
        )

    @property
    def num_pending(self) -> int:
        """Tokens sampled by launched steps whose value is not known yet."""
        return self.num_tokens - len(self.token_ids)

    @property
    def num_outputs(self) -> int:
        """Known output tokens, those from before a move included."""
        return len(self.token_ids) - len(self.request.prompt_ids)

    def admission(self, row: int) -> Admission:
        """Take `row`, as every rank is told it."""
        self.row = row
        request = self.request
        banned = request.stop_token_ids if request.sampling.min_tokens > self.num_outputs else ()
        return Admission(
            row=row,
            token_ids=tuple(self.token_ids),
            num_prompt_tokens=len(request.prompt_ids),
            sampling=request.sampling,
            seed=request.seed,
            banned_until_min=banned,
        )
