"""A step: the plan that the leader makes and every rank executes, and what comes of it.

A plan is a delta. Each rank keeps, for every row (a sequence's place in the batch tables), its token ids,
its page tables and its length; a plan says which rows end, which begin, which pages they are granted, and
which tokens are computed. It never holds the value of a token that was sampled: a rank has it already, so
step n+1 can be planned before the tokens of step n are known to the leader.

Order within a step: ended rows, then admissions, then grants, then work.
"""

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from headway.core.request import Logprob
from headway.core.sampling import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """A sequence takes `row`. `token_ids` are all known ones: the prompt and what was generated before."""

    row: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    sampling: SamplingParams
    seed: int
    banned_until_min: tuple[int, ...] = ()  # ids not to be chosen before min_tokens: every stop id


@dataclass(frozen=True, kw_only=True, slots=True)
class PageGrant:
    """`pages` are appended to the page table of `row` in `group`."""

    row: int
    group: int
    pages: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """One numbered step. `rows`, `num_tokens` and `samples` are parallel: the work, a row each.

    A row's next `num_tokens` tokens, from its length on, are computed; where `samples` is set the token
    after them is sampled and appended (so it is set only when the row's last known token is computed).
    Rows that compute one token and sample come first: they are the decode part.
    """

    step: int
    ended: tuple[int, ...] = ()
    admissions: tuple[Admission, ...] = ()
    grants: tuple[PageGrant, ...] = ()
    rows: tuple[int, ...] = ()
    num_tokens: tuple[int, ...] = ()
    samples: tuple[bool, ...] = ()
    digest: int = 0  # what the leader's Ledger gives after this plan


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledToken:
    row: int
    token_id: int
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """The tokens sampled in `step`, in the order of the plan's rows with `samples` set."""

    step: int
    tokens: tuple[SampledToken, ...]


@dataclass
class Ledger:
    """What a plan assumes: each row's length and page tables, folded into 32 bits.

    The leader keeps one while planning; each rank keeps its own from the plans it has executed. Equal
    digests mean that no plan was lost, repeated, reordered or read differently. Cost: O(work), not O(pages).
    """

    lengths: dict[int, int] = field(default_factory=dict)
    pages: dict[int, int] = field(default_factory=dict)  # row -> CRC of every grant since its admission

    def apply(self, plan: StepPlan) -> int:
        """Take `plan` into account; return the digest of what its work stands on."""
        for row in plan.ended:
            self.lengths.pop(row, None)
            self.pages.pop(row, None)
        for admission in plan.admissions:
            self.lengths[admission.row] = 0
            self.pages[admission.row] = 0
        for grant in plan.grants:
            self.pages[grant.row] = _crc((grant.group, *grant.pages), self.pages.get(grant.row, 0))
        facts = [plan.step]
        for row, count in zip(plan.rows, plan.num_tokens, strict=True):
            length = self.lengths.get(row, -1)
            facts += (row, length, self.pages.get(row, 0))
            self.lengths[row] = length + count
        return _crc(facts)


def _crc(values: Sequence[int], start: int = 0) -> int:
    return zlib.crc32(array("q", values).tobytes(), start)
