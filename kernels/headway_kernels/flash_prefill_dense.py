"""`flash_prefill` over keys and values that have no pages: packed rows, one sequence's behind another's.

    out[t, q] = softmax_l(f(scale * q[t, q] . k[l, g(q)])) @ v[l, g(q)],  l in the sequence of t

For encoders, and for prompts whose keys are not kept. Nothing is copied: dense rows are a pool whose pages of
one row follow one another, and a kernel finds a tile at first row + position.

Layout: q, out [T, Q, D]; k, v [T', G, D] with any strides of tokens and heads, so that all three may be parts
of one projection. Grid and source as in `flash_prefill`.

Shape suffixes: as in `reference`; T of keys and values counts their own tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from headway_kernels import debug
from headway_kernels.flash_prefill import launch_prefill
from headway_kernels.launch import check_dense, check_starts
from headway_kernels.prefill_call import PrefillCall
from headway_kernels.tiles import Tiles


def flash_prefill_dense(
    q_TQD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    *,
    query_starts: Tensor,
    key_starts: Tensor,
    lengths: Sequence[tuple[int, int]],
    group_bounds: Sequence[int],
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks_Q: Tensor | None = None,
    alibi_slopes_Q: Tensor | None = None,
    out_TQD: Tensor | None = None,
    lse_TQ: Tensor | None = None,
    tile: Tiles | None = None,
    check_values: bool = False,
) -> Tensor:
    """As `reference.flash_prefill_dense` -> out_TQD, in the given tensor if there is one.

    lse_TQ, tile, check_values: as in `flash_prefill`. A query that sees nothing gives zeros.
    Raises ValueError for tensors that do not fit each other.
    """
    op = "flash_prefill_dense"
    num_tokens, _, _ = check_dense(
        op,
        q_TQD,
        k_TGD,
        v_TGD,
        group_bounds=group_bounds,
        sinks=sinks_Q,
        slopes=alibi_slopes_Q,
        scale=scale,
        window=window,
        softcap=softcap,
        out=out_TQD,
        lse=lse_TQ,
    )
    check_starts(op, "query_starts", query_starts, lengths, q_TQD)
    check_starts(op, "key_starts", key_starts, lengths, q_TQD)
    if check_values:
        debug.check_starts(op, "query_starts", query_starts, [count for count, _ in lengths], num_tokens)
        debug.check_starts(op, "key_starts", key_starts, [context for _, context in lengths], len(k_TGD))
    out_TQD = torch.empty_like(q_TQD) if out_TQD is None else out_TQD
    if not num_tokens:
        return out_TQD
    call = PrefillCall(
        q=q_TQD,
        k=k_TGD[:, :, None],
        v=v_TGD[:, :, None],
        table=key_starts,
        query_starts=query_starts,
        context_lens=None,
        group_bounds=group_bounds,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
        sinks=sinks_Q,
        slopes=alibi_slopes_Q,
        out=out_TQD,
        lse=lse_TQ,
    )
    launch_prefill(call, tile)
    return out_TQD
