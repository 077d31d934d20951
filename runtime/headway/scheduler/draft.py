"""A step while it is planned."""

from headway.core.step import Admission, PageGrant, StepPlan
from headway.scheduler.sequence import Sequence


class Draft:
    """Work, grants and admissions of one step, and the tokens left in its budget.

    decodes: sequences that compute one token and sample, known tokens' last one included, however it came
    about: the plan has these first. chunks: the rest, with the number of tokens and whether they sample.
    """

    __slots__ = ("admissions", "budget", "chunks", "decodes", "grants")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.decodes: list[Sequence] = []
        self.chunks: list[tuple[Sequence, int, bool]] = []
        self.grants: list[PageGrant] = []
        self.admissions: list[Admission] = []

    @property
    def has_work(self) -> bool:
        return bool(self.decodes or self.chunks)

    def compute(self, sequence: Sequence, count: int) -> None:
        """The sequence's next `count` tokens are computed, and one is sampled if these are the last."""
        self.budget -= count
        sequence.num_computed += count
        samples = sequence.num_computed == sequence.num_tokens
        if samples:
            sequence.num_tokens += 1
        if samples and count == 1:
            self.decodes.append(sequence)
        else:
            self.chunks.append((sequence, count, samples))

    def sampled(self) -> list[Sequence]:
        """The sequences that get a token, in the plan's order."""
        return self.decodes + [sequence for sequence, _, samples in self.chunks if samples]

    def plan(self, *, step: int, ended: tuple[int, ...]) -> StepPlan:
        """The plan, but for its digest."""
        rows = [sequence.row for sequence in self.decodes] + [chunk[0].row for chunk in self.chunks]
        num_decodes = len(self.decodes)
        return StepPlan(
            step=step,
            ended=ended,
            admissions=tuple(self.admissions),
            grants=tuple(self.grants),
            rows=tuple(row for row in rows if row is not None),
            num_tokens=(1,) * num_decodes + tuple(chunk[1] for chunk in self.chunks),
            samples=(True,) * num_decodes + tuple(chunk[2] for chunk in self.chunks),
        )
