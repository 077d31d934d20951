"""The steps that a rank on a GPU runs before it takes work, so that no request waits for a compiler.

A kernel is compiled when it is first launched with a new kind of argument (Triton keeps the result on disk,
for the processes after this one). Which kernels a step needs follows from few things:

- its tokens: tiles of matrix products, of sums over ranks and of experts follow from their number; and a long
  prompt that is computed whole is attended otherwise than a short one, or a chunk. The largest step comes
  first: it also shows what activations take;
- its rows: how a decode is planned follows from their number;
- how its tokens are chosen: the work differs by kind, and its tiles by whether there are many rows.

Contexts and page tables choose nothing, so every step begins with rows of its own, and ends those of the step
before.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

from headway.core.config import EngineConfig
from headway.core.sampling import SamplingParams
from headway.core.step import Admission, Ledger, PageGrant, StepPlan

# The kinds of choice, each from logits as the model gives them, and from penalised ones, in float32.
KINDS = tuple(
    SamplingParams(**choice, repetition_penalty=penalty, logprobs=1)
    for choice in ({"temperature": 0}, {"temperature": 1}, {"top_p": 0.9, "top_k": 50, "min_p": 0.01})
    for penalty in (1.0, 1.1)
)
GREEDY = KINDS[0]


def warm_up_plans(
    config: EngineConfig, *, max_model_len: int, num_groups: int, sizes: Collection[int] = ()
) -> tuple[StepPlan, ...]:
    """The plans in order, numbered from 0; their pages are those from 0 on in every group.

    sizes: numbers of tokens that the model has kernels of its own for (`Decoder.step_sizes`).
    """
    most = min(config.max_num_rows, config.max_num_tokens)
    steps = [largest_step(config, max_model_len=max_model_len, num_groups=num_groups)]
    for size in sorted({*powers(config.max_num_tokens), *sizes}):
        whole, rest = divmod(size, max_model_len)
        lengths = [*([rest] if rest else []), *[max_model_len] * whole][:most]
        steps.append(_step(lengths, GREEDY, config, num_groups))
    for size in row_counts(most):
        kinds = KINDS if size in (1, most) else (GREEDY,)
        steps += [_step([1] * size, kind, config, num_groups) for kind in kinds]
    return tuple(_numbered(steps))


def largest_step(config: EngineConfig, *, max_model_len: int, num_groups: int) -> StepPlan:
    """A step that fills the token budget with prompts as long as the model takes them."""
    length = min(config.max_num_tokens, max_model_len)
    num_rows = min(max(config.max_num_tokens // length, 1), config.max_num_rows)
    plan = _step([length] * num_rows, SamplingParams(top_p=0.9), config, num_groups)
    return replace(plan, digest=Ledger().apply(plan))


def num_pages(plans: tuple[StepPlan, ...]) -> int:
    """Pages a group that `plans` need."""
    return 1 + max(page for plan in plans for grant in plan.grants for page in grant.pages)


def row_counts(most: int) -> list[int]:
    """1 to 4, which `gemv` has a kernel each for, 8 and so on, and the most rows that decode together."""
    return sorted({*powers(most), min(3, most), most})


def powers(most: int) -> list[int]:
    """1, 2, 4 and so on, up to `most`."""
    return [1 << bit for bit in range(most.bit_length())]


def _step(lengths: list[int], sampling: SamplingParams, config: EngineConfig, num_groups: int) -> StepPlan:
    """Prompts of these lengths, computed whole; those of one token, which decode, come first."""
    num_rows, pages_a_row = len(lengths), -(-max(lengths) // config.page_size)
    return StepPlan(
        step=0,
        admissions=tuple(
            Admission(row=row, token_ids=(0,) * length, num_prompt_tokens=length, sampling=sampling, seed=row)
            for row, length in enumerate(lengths)
        ),
        grants=tuple(
            PageGrant(row=row, group=group, pages=tuple(range(row * pages_a_row, (row + 1) * pages_a_row)))
            for row in range(num_rows)
            for group in range(num_groups)
        ),
        rows=tuple(range(num_rows)),
        num_tokens=tuple(lengths),
        samples=(True,) * num_rows,
    )


def _numbered(steps: list[StepPlan]) -> Iterator[StepPlan]:
    """The plans in order, each of which ends the rows of the one before."""
    ledger = Ledger()
    ended: tuple[int, ...] = ()
    for index, step in enumerate(steps):
        plan = replace(step, step=index, ended=ended)
        yield replace(plan, digest=ledger.apply(plan))
        ended = plan.rows
