"""Continuous batching with chunked prefill: plan a step, commit its result.

A plan never needs a token that a launched step is still sampling, so any number of steps may be planned
before the first of them is committed. A sequence whose stop id comes to light late has then been computed
a little too far; those tokens are dropped.
"""

from collections import deque
from dataclasses import dataclass, replace

from headway.core.errors import ConfigError, DuplicateRequest, InvalidRequest, StepMismatch, shorten
from headway.core.request import EngineRequest, Load, TokenEvent
from headway.core.step import Ledger, SampledToken, StepPlan, StepResult
from headway.scheduler.admission import Headroom
from headway.scheduler.draft import Draft
from headway.scheduler.ending import finish_reason
from headway.scheduler.groups import PageGroups
from headway.scheduler.roster import Roster
from headway.scheduler.sequence import Sequence
from headway.sharding.pages import longest_sequence


@dataclass(frozen=True, slots=True)
class Launched:
    """A plan whose result has not come: rows are reused, so it says whose tokens they are."""

    step: int
    rows: list[int | None]
    sequences: list[Sequence]


class Scheduler:
    """Decides for one replica. Steps are numbered from 1; every plan must be launched, in order.

    num_pages, windows: an entry a page group. max_num_rows: sequences that run at once, lowered to
    max_num_tokens (the budget of a step), so that no decoding row is ever left out for want of budget.
    max_model_len: lowered to what a sequence alone in the pool can have. Raises ConfigError.
    """

    def __init__(
        self,
        *,
        num_pages: tuple[int, ...],
        windows: tuple[int | None, ...],
        page_size: int,
        max_num_rows: int,
        max_num_tokens: int,
        max_model_len: int,
    ) -> None:
        self._groups = PageGroups(num_pages=num_pages, windows=windows, page_size=page_size)
        self.max_model_len = longest_sequence(
            max_model_len, num_pages=num_pages, windows=windows, page_size=page_size
        )
        if self.max_model_len < 2:
            raise ConfigError(
                f"max_model_len must be at least 2 (context and page pool), got {self.max_model_len}"
            )
        self._roster = Roster(groups=self._groups, max_num_rows=min(max_num_rows, max_num_tokens))
        self._max_num_tokens = max_num_tokens
        self._ledger = Ledger()
        self._launched: deque[Launched] = deque()
        self._num_arrivals = 0
        self._step = 0
        self._last_done = 0

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt, with tokens from before a move, that leaves room for one more."""
        return self.max_model_len - 1

    @property
    def num_unfinished(self) -> int:
        return len(self._roster.by_id)

    def add(self, request: EngineRequest) -> None:
        """Queue `request`. Raises DuplicateRequest, and InvalidRequest if it can never run."""
        if request.request_id in self._roster.by_id:
            raise DuplicateRequest(f"request_id {shorten(request.request_id)} is in use")
        num_tokens = len(request.prompt_ids) + len(request.output_ids)
        if not request.prompt_ids or num_tokens > self.max_prompt_tokens:
            limit = f"1 to {self.max_prompt_tokens} tokens (the context and the page pool)"
            raise InvalidRequest("prompt", limit, num_tokens if request.prompt_ids else 0)
        max_tokens = request.sampling.max_tokens
        if len(request.output_ids) >= max_tokens:
            raise InvalidRequest(
                "output_ids", f"fewer than max_tokens ({max_tokens})", len(request.output_ids)
            )
        self._num_arrivals += 1
        self._roster.add(
            Sequence.begin(
                request,
                arrival=self._num_arrivals,
                num_groups=len(self._groups.allocators),
                max_model_len=self.max_model_len,
            )
        )

    def plan(self) -> StepPlan | None:
        """The next step, or None if nothing can be computed before a launched step is committed.

        Rows that have ended are told by the next real plan; without work they are no reason for one.
        """
        draft = Draft(self._max_num_tokens)
        if self._groups.windowed:
            self._drop_behind_windows()
        prefilling = self._plan_decodes(draft)
        self._plan_prefills(draft, prefilling)
        self._plan_admissions(draft)
        return self._launch(draft) if draft.has_work else None

    def commit(self, result: StepResult) -> list[TokenEvent]:
        """Take the tokens of the oldest launched step; return what they mean for their requests.

        Raises StepMismatch if this is not the result of that step.
        """
        launched = self._launched.popleft() if self._launched else None
        rows = [token.row for token in result.tokens]
        if launched is None or (launched.step, launched.rows) != (result.step, rows):
            expected = "none" if launched is None else f"step {launched.step} with rows {launched.rows}"
            text = shorten(f"its result is for rows {rows}, expected {expected}", 200)
            raise StepMismatch(0, result.step, text)
        self._last_done = result.step
        return [
            self._take(sequence, token)
            for sequence, token in zip(launched.sequences, result.tokens, strict=True)
            if not sequence.ended
        ]

    def abort(self, request_id: str) -> bool:
        """End a request without a further token; its pages are free at once. False if it is not known."""
        sequence = self._roster.by_id.get(request_id)
        if sequence is None:
            return False
        self._roster.drop(sequence)
        return True

    def drop_all(self) -> list[str]:
        """After a failed step: end everything, forget the launched steps; return the ids, oldest first.

        Results of steps launched before must not be committed any more.
        """
        request_ids = list(self._roster.by_id)
        for request_id in request_ids:
            self.abort(request_id)
        self._launched.clear()
        return request_ids

    def load(self) -> Load:
        """Pages are those of the group with the smallest part free: it decides what can still come."""
        tightest = min(self._groups.allocators, key=lambda pages: pages.num_free / pages.num_pages)
        return Load(
            num_running=len(self._roster.running),
            num_waiting=len(self._roster.waiting),
            free_pages=tightest.num_free,
            num_pages=tightest.num_pages,
            step=self._last_done,
        )

    def check(self) -> None:
        """Raise IntegrityError unless live pages and rows are those of the running sequences. O(pages)."""
        self._groups.check(self._roster.by_id.values())
        self._roster.check()

    def _drop_behind_windows(self) -> None:
        # Before any work is planned: a page given back here is not read in this step, so it may be
        # granted in it.
        for sequence in self._roster.running:
            if sequence.num_computed >= sequence.drop_at:
                self._groups.drop_behind_window(sequence)

    def _plan_decodes(self, draft: Draft) -> list[Sequence]:
        """Every row with one token left to compute, oldest first. Returns the rows that have more left.

        The steady state is this loop: it creates nothing for a row that needs no page.
        """
        prefilling = []
        decodes = draft.decodes
        for sequence in self._roster.running:  # shrinks at its end when a row is preempted
            num_tokens = sequence.num_tokens
            if num_tokens - sequence.num_computed > 1:
                prefilling.append(sequence)
                continue
            if num_tokens >= sequence.limit:
                continue  # its last token is being sampled
            if num_tokens > sequence.num_slots and not self._grow_or_preempt(draft, sequence):
                continue
            sequence.num_computed = num_tokens
            sequence.num_tokens = num_tokens + 1
            decodes.append(sequence)
        draft.budget -= len(decodes)
        return prefilling

    def _grow_or_preempt(self, draft: Draft, sequence: Sequence) -> bool:
        """A page for a decoding row, at the cost of the latest arrivals; False if that is itself."""
        while not self._groups.room(sequence):
            if self._roster.preempt_latest() is sequence:
                return False
        draft.grants += self._groups.grow(sequence, sequence.num_tokens)
        return True

    def _plan_prefills(self, draft: Draft, prefilling: list[Sequence]) -> None:
        """Chunks of running rows, oldest first. One without room waits, and all behind it.

        That is no deadlock: admission left pages for all known tokens of every running row, so only
        decoding rows can have taken them, and each of those goes on, ends, or is preempted.
        """
        for sequence in prefilling:
            if not draft.budget or not self._groups.room(sequence):
                return
            self._plan_chunk(draft, sequence)

    def _plan_admissions(self, draft: Draft) -> None:
        """Newcomers, first come first served; the last one may begin with a part of its prompt."""
        roster = self._roster
        headroom = Headroom(self._groups, roster.running)
        while roster.waiting and roster.has_free_row and draft.budget:
            if roster.waiting[0].num_pending or not headroom.take(roster.waiting[0]):
                return
            sequence, admission = roster.admit_next()
            draft.admissions.append(admission)
            self._plan_chunk(draft, sequence)

    def _plan_chunk(self, draft: Draft, sequence: Sequence) -> None:
        left = sequence.num_tokens - sequence.num_computed
        count = min(draft.budget, left, self._groups.room(sequence))
        draft.grants += self._groups.grow(sequence, sequence.num_computed + count)
        draft.compute(sequence, count)

    def _launch(self, draft: Draft) -> StepPlan:
        self._step += 1
        plan = draft.plan(step=self._step, ended=tuple(self._roster.ended_rows))
        self._roster.ended_rows.clear()
        sampled = draft.sampled()
        self._launched.append(Launched(self._step, [sequence.row for sequence in sampled], sampled))
        return replace(plan, digest=self._ledger.apply(plan))

    def _take(self, sequence: Sequence, token: SampledToken) -> TokenEvent:
        sequence.token_ids.append(token.token_id)
        reason = finish_reason(sequence)
        if reason is not None:
            self._roster.drop(sequence)
        return TokenEvent(
            request_id=sequence.request.request_id,
            token_id=token.token_id,
            logprobs=token.logprobs,
            finish_reason=reason,
        )
