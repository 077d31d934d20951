"""The op `sample` on a GPU: as `reference_sample` has it, in two launches where nothing is cut.

    token = argmax_i(score_i + T * gumbel(seed, position, i))

Every program takes a chunk of a row, reads it once, makes its noise in registers, and leaves the best value
and its id; a second launch chooses among a row's chunks, as it would among ranks that have a shard each.
Values are compared and never added up, so a token is the same whatever the chunks, the shards and the other
rows. Where top-k, top-p or min-p cut, `floors` runs first. Layout: logits [S, V], any row stride. Grids:
(rows, chunks), (rows,).

Nothing waits for the device, and the cost depends on shapes alone but for what `floors` says of itself.

Shape suffixes: S sampled rows, V vocabulary or a shard of it, R chunks or ranks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.reference_sample import TopCut
from headway_kernels.sample_args import check_column, check_logits, check_vector
from headway_kernels.sample_floors import floors
from headway_kernels.sample_pieces import EXACT, gumbel, load_scores, noise_key
from headway_kernels.tiles import padded, vocab_chunk


def sample(
    logits_SV: Tensor,
    *,
    temperature_S1: Tensor | None = None,
    seeds_S: Tensor | None = None,
    positions_S: Tensor | None = None,
    top: TopCut | None = None,
    min_p_S1: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """As `reference_sample.sample`: one token id a row, int64 [S].

    chunk: tokens a program takes, a power of two; by default what `tiles` says. Raises ValueError for
    arguments whose shape, dtype or device does not fit.
    """
    check_logits("sample", logits_SV)
    if not logits_SV.shape[1]:
        raise ValueError("sample: logits must have a vocabulary, got 0 tokens")
    floor_S1 = None
    if temperature_S1 is not None and (top is not None or min_p_S1 is not None):
        floor_S1 = floors(logits_SV, temperature_S1=temperature_S1, top=top, min_p_S1=min_p_S1, chunk=chunk)
    parts = _draw("sample", logits_SV, temperature_S1, seeds_S, positions_S, floor_S1, 0, chunk)
    return _choose(*parts)[1]


def sample_shard(
    logits_SV: Tensor,
    *,
    first_token: int,
    temperature_S1: Tensor | None = None,
    seeds_S: Tensor | None = None,
    positions_S: Tensor | None = None,
    floor_S1: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference_sample.sample_shard` -> (values_S, ids_S); chunk and errors as in `sample`."""
    check_logits("sample_shard", logits_SV)
    if temperature_S1 is None:
        floor_S1 = None
    elif floor_S1 is not None:
        check_column("sample_shard", "floor", floor_S1, len(logits_SV), torch.float32, logits_SV)
    return _choose(
        *_draw("sample_shard", logits_SV, temperature_S1, seeds_S, positions_S, floor_S1, first_token, chunk)
    )


def choose(values_RS: Tensor, ids_RS: Tensor) -> Tensor:
    """As `reference_sample.choose` -> int64 [S]. Raises ValueError for shapes that do not fit each other."""
    if values_RS.ndim != 2 or values_RS.dtype != torch.float32 or not len(values_RS):
        found = f"{values_RS.dtype} {list(values_RS.shape)}"
        raise ValueError(f"choose: values must be float32 [ranks, rows], got {found}")
    if ids_RS.shape != values_RS.shape or ids_RS.dtype != torch.int64 or ids_RS.device != values_RS.device:
        shape = f"{list(values_RS.shape)} on {values_RS.device}"
        raise ValueError(
            f"choose: ids must be int64 {shape}, got {ids_RS.dtype} {list(ids_RS.shape)} on {ids_RS.device}"
        )
    return _choose(values_RS, ids_RS)[1]


def _draw(
    op: str,
    logits_SV: Tensor,
    temperature_S1: Tensor | None,
    seeds_S: Tensor | None,
    positions_S: Tensor | None,
    floor_S1: Tensor | None,
    first_token: int,
    chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """The best value and its id in each chunk of each row: [R, S]."""
    num_rows, vocab_size = logits_SV.shape
    if temperature_S1 is not None:
        if seeds_S is None or positions_S is None:
            raise ValueError(f"{op}: rows with a temperature need seeds and positions")
        check_column(op, "temperature", temperature_S1, num_rows, torch.float32, logits_SV)
        check_vector(op, "seeds", seeds_S, num_rows, logits_SV)
        check_vector(op, "positions", positions_S, num_rows, logits_SV)
    chunk = chunk or vocab_chunk(num_rows, vocab_size)
    num_chunks = max(triton.cdiv(vocab_size, chunk), 1)
    values_RS = torch.empty(num_chunks, num_rows, dtype=torch.float32, device=logits_SV.device)
    ids_RS = torch.empty(num_chunks, num_rows, dtype=torch.int64, device=logits_SV.device)
    if num_rows:
        _draw_kernel[(num_rows, num_chunks)](
            logits_SV,
            temperature_S1,
            seeds_S,
            positions_S,
            floor_S1,
            values_RS,
            ids_RS,
            vocab_size,
            first_token,
            logits_SV.stride(0),
            0 if temperature_S1 is None else temperature_S1.stride(0),
            0 if floor_S1 is None else floor_S1.stride(0),
            NOISY=temperature_S1 is not None,
            HAS_FLOOR=floor_S1 is not None,
            CHUNK=chunk,
            num_warps=4,
            **EXACT,
        )
    return values_RS, ids_RS


def _choose(values_RS: Tensor, ids_RS: Tensor) -> tuple[Tensor, Tensor]:
    num_parts, num_rows = values_RS.shape
    values_S = torch.empty(num_rows, dtype=torch.float32, device=values_RS.device)
    ids_S = torch.empty(num_rows, dtype=torch.int64, device=values_RS.device)
    if num_rows:
        _choose_kernel[(num_rows,)](
            values_RS,
            ids_RS,
            values_S,
            ids_S,
            num_parts,
            *values_RS.stride(),
            *ids_RS.stride(),
            PARTS=padded(num_parts, 1),
            num_warps=1,
            **EXACT,
        )
    return values_S, ids_S


@triton.jit(do_not_specialize=["first_token", "temperature_row", "floor_row"])
def _draw_kernel(
    logits_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,
    floor_ptr,
    values_ptr,
    ids_ptr,
    vocab_size,
    first_token,
    logits_row,
    temperature_row,
    floor_row,
    NOISY: tl.constexpr,
    HAS_FLOOR: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row, part = tl.program_id(0), tl.program_id(1)
    id_V = part * CHUNK + tl.arange(0, CHUNK)
    score_V = load_scores(logits_ptr + row.to(tl.int64) * logits_row, id_V, id_V < vocab_size)
    if NOISY:
        temperature = tl.load(temperature_ptr + row * temperature_row)
        random = temperature > 0
        if HAS_FLOOR:
            score_V = tl.where(score_V < tl.load(floor_ptr + row * floor_row), float("-inf"), score_V)
            random = random & (tl.max(score_V, 0) > float("-inf"))  # most chunks lose all their tokens
        if random:
            key = noise_key(tl.load(seeds_ptr + row), tl.load(positions_ptr + row))
            score_V += temperature * gumbel(key, id_V.to(tl.int64) + first_token)
    best, index = tl.max(score_V, 0, return_indices=True)
    out = part * tl.num_programs(0) + row
    tl.store(values_ptr + out, best)
    tl.store(ids_ptr + out, (part * CHUNK + index).to(tl.int64) + first_token)


@triton.jit(do_not_specialize=["num_parts", "values_part", "ids_part"])
def _choose_kernel(
    values_ptr,
    ids_ptr,
    value_ptr,
    id_ptr,
    num_parts,
    values_part,
    values_row,
    ids_part,
    ids_row,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0)
    part_R = tl.arange(0, PARTS)
    there_R = part_R < num_parts
    value_R = tl.load(values_ptr + part_R * values_part + row * values_row, mask=there_R, other=float("-inf"))
    id_R = tl.load(ids_ptr + part_R * ids_part + row * ids_row, mask=there_R, other=0x7FFFFFFFFFFFFFFF)
    best = tl.max(value_R, 0)
    tl.store(value_ptr + row, best)
    tl.store(id_ptr + row, tl.min(tl.where(value_R == best, id_R, 0x7FFFFFFFFFFFFFFF), 0))
