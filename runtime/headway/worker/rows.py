"""The host's tables of rows: what each sequence's tokens, pages and length are, as this rank knows them.

numpy, not torch: a step reads a few rows, and small numpy calls cost a fraction of small torch ones.
"""

import numpy as np
from numpy.typing import NDArray

from headway.core.step import StepPlan

IntArray = NDArray[np.int64]


class RowTables:
    """Applies plans in their order.

    lengths, prompt_lengths, limits [rows]: tokens that have been computed, those of the prompt, and those
        that the row may come to have.
    tables, a group each [rows, pages a sequence may have]: page numbers; entries behind a row's are stale.
    """

    def __init__(self, *, max_num_rows: int, num_groups: int, page_size: int, max_model_len: int) -> None:
        self.lengths: IntArray = np.zeros(max_num_rows, dtype=np.int64)
        self.prompt_lengths: IntArray = np.zeros(max_num_rows, dtype=np.int64)
        self.limits: IntArray = np.zeros(max_num_rows, dtype=np.int64)
        self._max_model_len = max_model_len
        max_pages = -(-max_model_len // page_size)
        self.tables = [np.zeros((max_num_rows, max_pages), dtype=np.int32) for _ in range(num_groups)]
        self._num_pages = np.zeros((num_groups, max_num_rows), dtype=np.int64)
        self._token_ids: dict[int, IntArray] = {}

    def apply(self, plan: StepPlan) -> None:
        """Take over what `plan` ends, admits and grants; its work is still to come."""
        for row in plan.ended:
            self._token_ids.pop(row, None)
        for admission in plan.admissions:
            self._token_ids[admission.row] = np.asarray(admission.token_ids, dtype=np.int64)
            self.lengths[admission.row] = 0
            limit = admission.num_prompt_tokens + admission.sampling.max_tokens
            self.prompt_lengths[admission.row] = admission.num_prompt_tokens
            self.limits[admission.row] = min(limit, self._max_model_len)
            self._num_pages[:, admission.row] = 0
        for grant in plan.grants:
            start = int(self._num_pages[grant.group, grant.row])
            stop = start + len(grant.pages)
            self.tables[grant.group][grant.row, start:stop] = grant.pages
            self._num_pages[grant.group, grant.row] = stop

    def token_ids(self, row: int, num_tokens: int) -> IntArray:
        """The row's next `num_tokens` tokens, which are known since its admission."""
        start = int(self.lengths[row])
        return self._token_ids[row][start : start + num_tokens]
