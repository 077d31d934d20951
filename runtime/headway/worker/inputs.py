"""From a plan's integers to what the decoder takes, in one copy to the device.

Shape suffixes: T tokens of the step, B rows that decode, S rows that prefill, P pages of a table.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headway.core.step import StepPlan
from headway.model.batch import GroupInput, ModelInput
from headway.worker.rows import IntArray, RowTables


def num_decode_rows(plan: StepPlan) -> int:
    """Rows at the plan's start that compute the one token sampled last."""
    for index, (count, samples) in enumerate(zip(plan.num_tokens, plan.samples, strict=True)):
        if count != 1 or not samples:
            return index
    return len(plan.rows)


def model_input(
    plan: StepPlan, tables: RowTables, last_token: Tensor, *, page_size: int, device: torch.device
) -> ModelInput:
    """What `plan`'s work reads. `last_token` [rows] holds each row's newest token on the device.

    Decode rows take their token from there, so that a step can follow one whose tokens the host has not
    seen; prefill rows take theirs from the tables.
    """
    num_decode = num_decode_rows(plan)
    rows = np.asarray(plan.rows, dtype=np.int64)
    counts = np.asarray(plan.num_tokens, dtype=np.int64)
    starts = tables.lengths[rows]
    contexts = starts + counts
    token_rows, positions = _spread(rows, starts, counts, num_decode)
    prefill_ids = [
        tables.token_ids(row, count)
        for row, count in zip(plan.rows[num_decode:], plan.num_tokens[num_decode:], strict=True)
    ]
    query_starts = np.concatenate(([0], np.cumsum(counts[num_decode:])))

    packed = Packed(device)
    packed.add("rows", rows[:num_decode])
    packed.add("prefill_ids", np.concatenate(prefill_ids) if prefill_ids else rows[:0])
    packed.add("positions", positions)
    packed.add("lengths", np.maximum(tables.prompt_lengths[token_rows], positions + 1))
    packed.add("limits", tables.limits[token_rows])
    packed.add("last", (np.cumsum(counts) - 1)[np.asarray(plan.samples)])
    for group, table in enumerate(tables.tables):
        pages = table[token_rows, positions // page_size].astype(np.int64)
        packed.add(f"slots{group}", pages * page_size + positions % page_size)
    packed.send()

    decode, prefill = slice(None, num_decode), slice(num_decode, None)
    return ModelInput(
        token_ids_T=torch.cat((last_token[packed["rows"]], packed["prefill_ids"])),
        positions_T=packed["positions"],
        lengths_T=packed["lengths"],
        limits_T=packed["limits"],
        last_N=packed["last"],
        groups=tuple(
            GroupInput(
                slots_T=packed[f"slots{group}"],
                decode_table_BP=_table(table, rows[decode], contexts[decode], page_size, device),
                prefill_table_SP=_table(table, rows[prefill], contexts[prefill], page_size, device),
            )
            for group, table in enumerate(tables.tables)
        ),
        decode_context_lens_B=_int32(contexts[decode], device),
        max_context_len=int(contexts[decode].max(initial=0)),
        query_starts=_int32(query_starts, device),
        prefill_context_lens_S=_int32(contexts[prefill], device),
        prefill_lengths=tuple(zip(counts[prefill].tolist(), contexts[prefill].tolist(), strict=True)),
    )


def _spread(rows: IntArray, starts: IntArray, counts: IntArray, num_decode: int) -> tuple[IntArray, IntArray]:
    """Row and position of each of the step's T tokens."""
    if num_decode == len(rows):
        return rows, starts
    first = np.cumsum(counts) - counts
    positions = np.arange(int(counts.sum())) - np.repeat(first - starts, counts)
    return np.repeat(rows, counts), positions


def _table(
    table: NDArray[np.int32],
    rows: IntArray,
    contexts: IntArray,
    page_size: int,
    device: torch.device,
) -> Tensor:
    """The rows' page tables, as many columns as the longest context needs."""
    num_pages = -(-int(contexts.max(initial=0)) // page_size)
    return torch.from_numpy(table[rows, :num_pages]).to(device)


def _int32(values: IntArray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.int32)).to(device)


class Packed:
    """Named int64 arrays that travel to the device as one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: dict[str, IntArray] = {}
        self._parts: dict[str, Tensor] = {}

    def add(self, name: str, values: IntArray) -> None:
        self._arrays[name] = values

    def send(self) -> None:
        sizes = [len(values) for values in self._arrays.values()]
        whole = torch.from_numpy(np.concatenate(list(self._arrays.values()))).to(self._device)
        self._parts = dict(zip(self._arrays, torch.split(whole, sizes), strict=True))

    def __getitem__(self, name: str) -> Tensor:
        return self._parts[name]
