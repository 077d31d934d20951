"""The steps that a rank on a GPU runs before it takes work, so that no request waits for a compiler.

A kernel is compiled when it is first launched with a new kind of argument (Triton keeps the result on disk,
for the processes after this one). So the warm-up runs the largest step, which also shows what activations
take, and decodes with every power of two of rows, whose parameters are of every kind that chooses kernels
of its own.
"""

from collections.abc import Iterator
from dataclasses import replace

from headway.core.config import EngineConfig
from headway.core.sampling import SamplingParams
from headway.core.step import Admission, Ledger, PageGrant, StepPlan

# Row 0 alone is a greedy batch; each row more adds a kind to the batches that have it.
KINDS = (
    SamplingParams(temperature=0),
    SamplingParams(temperature=1),
    SamplingParams(top_p=0.9, top_k=50, min_p=0.01),
    SamplingParams(repetition_penalty=1.1, presence_penalty=0.1, logprobs=1),
)


def warm_up_plans(config: EngineConfig, *, max_model_len: int, num_groups: int) -> tuple[StepPlan, ...]:
    """The plans in order, numbered from 0; their pages are those from 0 on in every group."""
    steps = [largest_step(config, max_model_len=max_model_len, num_groups=num_groups)]
    sizes = [size for size in row_counts(config) if size <= config.max_num_tokens]
    sizes = sizes[: max(max_model_len - 1, 1)]
    first = StepPlan(
        step=1,
        ended=steps[0].rows,
        admissions=tuple(_admission(row, 1, KINDS[row % len(KINDS)]) for row in range(sizes[-1])),
        grants=_grants(sizes[-1], -(-(len(sizes) + 1) // config.page_size), num_groups),
    )
    for index, size in enumerate(sizes):
        begun = first if index == 0 else StepPlan(step=index + 1)
        one = (1,) * size
        steps.append(replace(begun, rows=tuple(range(size)), num_tokens=one, samples=(True,) * size))
    return tuple(_signed(steps))


def largest_step(config: EngineConfig, *, max_model_len: int, num_groups: int) -> StepPlan:
    """A step that fills the token budget with prompts as long as the model takes them."""
    length = min(config.max_num_tokens, max_model_len)
    num_rows = min(max(config.max_num_tokens // length, 1), config.max_num_rows)
    plan = StepPlan(
        step=0,
        admissions=tuple(_admission(row, length, SamplingParams(top_p=0.9)) for row in range(num_rows)),
        grants=_grants(num_rows, -(-length // config.page_size), num_groups),
        rows=tuple(range(num_rows)),
        num_tokens=(length,) * num_rows,
        samples=(True,) * num_rows,
    )
    return replace(plan, digest=Ledger().apply(plan))


def num_pages(plans: tuple[StepPlan, ...]) -> int:
    """Pages a group that `plans` need."""
    return 1 + max(page for plan in plans for grant in plan.grants for page in grant.pages)


def row_counts(config: EngineConfig) -> list[int]:
    """1, 2, 4 and so on, and the most rows that decode together."""
    powers = [1 << bit for bit in range(config.max_num_rows.bit_length())]
    return sorted({*powers, config.max_num_rows})


def _admission(row: int, length: int, sampling: SamplingParams) -> Admission:
    return Admission(row=row, token_ids=(0,) * length, num_prompt_tokens=length, sampling=sampling, seed=row)


def _grants(num_rows: int, pages_a_row: int, num_groups: int) -> tuple[PageGrant, ...]:
    return tuple(
        PageGrant(row=row, group=group, pages=tuple(range(row * pages_a_row, (row + 1) * pages_a_row)))
        for row in range(num_rows)
        for group in range(num_groups)
    )


def _signed(plans: list[StepPlan]) -> Iterator[StepPlan]:
    ledger = Ledger()
    for plan in plans:
        yield replace(plan, digest=ledger.apply(plan))
