"""Who waits and who runs, in which row; who is preempted.

First come, first served, without exception: whoever runs arrived before everyone who waits. `running` is
thus in order of arrival, and so is `waiting`, though preempted sequences come back to its front.
"""

from collections import deque

from headway.core.step import Admission
from headway.scheduler.groups import PageGroups
from headway.scheduler.pages import IntegrityError
from headway.scheduler.sequence import Sequence


class Roster:
    """The live sequences of a replica and its rows.

    ended_rows: rows left since the last plan; the next plan must say so.
    """

    def __init__(self, *, groups: PageGroups, max_num_rows: int) -> None:
        self.by_id: dict[str, Sequence] = {}
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.ended_rows: list[int] = []
        self._groups = groups
        self._num_rows = max_num_rows
        self._free_rows = list(range(max_num_rows - 1, -1, -1))

    @property
    def has_free_row(self) -> bool:
        return bool(self._free_rows)

    def add(self, sequence: Sequence) -> None:
        self.by_id[sequence.request.request_id] = sequence
        self.waiting.append(sequence)

    def admit_next(self) -> tuple[Sequence, Admission]:
        """The first in the queue takes a free row."""
        sequence = self.waiting.popleft()
        self.running.append(sequence)
        return sequence, sequence.admission(self._free_rows.pop())

    def preempt_latest(self) -> Sequence:
        """The latest arrival gives its pages and row back, and waits, first in the queue.

        It will be computed again from its first token. Tokens that launched steps still sample for it are
        used when they come: they are what its next run would sample, so it does not run before that.
        """
        sequence = self.running.pop()
        self._leave_row(sequence)
        sequence.num_computed = 0
        sequence.num_preempted += 1
        self.waiting.appendleft(sequence)
        return sequence

    def drop(self, sequence: Sequence) -> None:
        """The sequence has ended, wherever it is. Tokens still to come for it are not used."""
        sequence.ended = True
        del self.by_id[sequence.request.request_id]
        if sequence.row is None:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self._leave_row(sequence)

    def check(self) -> None:
        """Raise IntegrityError unless every row is free or taken once, and all stand in order of arrival."""
        rows = [*self._free_rows, *(sequence.row for sequence in self.running)]
        if None in rows or len(set(rows)) != self._num_rows or len(rows) != self._num_rows:
            raise IntegrityError(f"free and running rows are {rows}, not each of {self._num_rows} once")
        arrivals = [sequence.arrival for sequence in (*self.running, *self.waiting)]
        if arrivals != sorted(arrivals):
            raise IntegrityError(f"running and waiting sequences are out of order of arrival: {arrivals}")
        if len(arrivals) != len(self.by_id):
            raise IntegrityError(f"{len(arrivals)} sequences run or wait, but {len(self.by_id)} are known")

    def _leave_row(self, sequence: Sequence) -> None:
        assert sequence.row is not None
        self._groups.free(sequence)
        self.ended_rows.append(sequence.row)
        self._free_rows.append(sequence.row)
        sequence.row = None
