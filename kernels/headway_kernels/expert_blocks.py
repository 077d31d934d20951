"""Which pairs of token and expert are multiplied together: pairs sorted by expert, in blocks of rows.

A pair is numbered token * K + k. Expert e's pairs fill blocks of `rows` places from block

    first(e) = before(e) // rows + e        or, with fewer pairs than that makes,    first(e) = before(e)

on, before(e) being the pairs of lower experts. Either leaves room for ceil(own(e) / rows) blocks, so an
expert need not know how many blocks the others take, and the host knows how many there are in all. Places
behind an expert's last pair hold -1, as do the experts of blocks that nobody needs. Pairs keep their order.
Nothing is waited for, and a captured graph follows the routing. Grid: a program an expert, which counts all
pairs and then places its own.

Source: the padded blocks are those of vLLM's moe_align_block_size; where they begin is our own.

Shape suffixes: T tokens, K experts a token, P pairs, C pairs read at once, M rows and B blocks.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from headway_kernels.launch import FUSED
from headway_kernels.tiles import padded

CHUNK = 8192  # pairs read at once: 16 for each thread of 16 warps


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertBlocks:
    """rows: of a block. pairs: int32 [blocks * rows]; experts: int32 [blocks], of each block. -1: nothing."""

    rows: int
    pairs: Tensor
    experts: Tensor

    def __len__(self) -> int:
        return len(self.experts)


def expert_blocks(experts_TK: Tensor, *, num_experts: int, rows: int) -> ExpertBlocks:
    """experts_TK: int64, contiguous, from 0 to num_experts - 1: a pair with another would be left out."""
    num_pairs = experts_TK.numel()
    num_blocks = most_blocks(num_pairs, num_experts, rows)
    made = torch.empty(num_blocks * (rows + 1), dtype=torch.int32, device=experts_TK.device)
    blocks = ExpertBlocks(rows=rows, pairs=made[: num_blocks * rows], experts=made[num_blocks * rows :])
    chunk = chunk_of(num_pairs)
    _blocks_kernel[(num_experts,)](
        experts_TK,
        blocks.pairs,
        blocks.experts,
        num_pairs,
        ROWS=rows,
        CHUNK=chunk,
        FEW=num_pairs == num_blocks,
        num_warps=max(4, chunk // 512),
        **FUSED,
    )
    return blocks


def most_blocks(num_pairs: int, num_experts: int, rows: int) -> int:
    """The blocks that are made, needed or not."""
    return min(num_pairs, num_pairs // rows + num_experts)


def chunk_of(num_pairs: int) -> int:
    """Pairs that are read at once."""
    return min(padded(num_pairs), CHUNK)


@triton.jit(do_not_specialize=["num_pairs"])
def _blocks_kernel(
    experts_ptr,
    pairs_ptr,
    block_experts_ptr,
    num_pairs,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    FEW: tl.constexpr,
):
    expert = tl.program_id(0)
    p_C = tl.arange(0, CHUNK)
    before_C = tl.zeros((CHUNK,), tl.int32)
    own_C = tl.zeros((CHUNK,), tl.int32)
    for begin in range(0, num_pairs, CHUNK):
        pair_C = begin + p_C
        expert_C = tl.load(experts_ptr + pair_C, mask=pair_C < num_pairs, other=1 << 31).to(tl.int64)
        before_C += (expert_C < expert).to(tl.int32)
        own_C += (expert_C == expert).to(tl.int32)
    before, own = tl.sum(before_C, 0), tl.sum(own_C, 0)
    first, end = before, before + own
    if not FEW:
        first, end = before // ROWS + expert, (before + own) // ROWS + expert + 1
    num_blocks = tl.cdiv(own, ROWS)

    b_M = tl.arange(0, ROWS)
    for begin in range(first, end, ROWS):
        block_M = begin + b_M
        tl.store(
            block_experts_ptr + block_M,
            tl.where(block_M < first + num_blocks, expert, -1),
            mask=block_M < end,
        )
    if own == 0:
        return
    pairs_ptr += first.to(tl.int64) * ROWS
    last_M = own + b_M
    tl.store(pairs_ptr + last_M, tl.full((ROWS,), -1, tl.int32), mask=last_M < num_blocks * ROWS)
    placed = 0
    for begin in range(0, num_pairs, CHUNK):
        pair_C = begin + p_C
        expert_C = tl.load(experts_ptr + pair_C, mask=pair_C < num_pairs, other=1 << 31).to(tl.int64)
        is_own_C = expert_C == expert
        place_C = placed + tl.cumsum(is_own_C.to(tl.int32), 0) - 1
        tl.store(pairs_ptr + place_C, pair_C, mask=is_own_C)
        placed += tl.sum(is_own_C.to(tl.int32), 0)
