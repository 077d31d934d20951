"""`flash_prefill` over keys and values that have no pages: packed rows, one sequence's behind another's.

    out[t, q] = softmax_l(f(scale * q[t, q] . k[l, g(q)])) @ v[l, g(q)],  l in the sequence of t

For encoders, and for prompts whose keys are not kept. Nothing is copied: dense rows are a pool whose pages of
one row follow one another, and the kernel finds a tile at first row + position (`pool_tiles`, DENSE). The
copy engine sees [kv_heads, rows, D], so that a tile may begin at any row.

Layout: q, out [T, Q, D]; k, v [T', G, D] with any strides of tokens and heads, so that all three may be parts
of one projection. Grid and source as in `flash_prefill`.

Shape suffixes: as in `reference`; T of keys and values counts their own tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from headway_kernels import debug
from headway_kernels.flash_prefill import launch_prefill
from headway_kernels.launch import capability, check_dense, check_starts, heads_of
from headway_kernels.pool_tiles import fits_boxes
from headway_kernels.tiles import BOXES, Tiles, padded, tiles


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
    num_tokens, _, head_dim = check_dense(
        op,
        q_TQD,
        k_TGD,
        v_TGD,
        group_bounds=group_bounds,
        sinks=sinks_Q,
        slopes=alibi_slopes_Q,
        scale=scale,
        window=window,
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
    tile = tile or tiles(
        "flash_prefill",
        head_dim=head_dim,
        group=heads_of(group_bounds),
        page_size=BOXES.positions,  # as good as: every tile lies whole
        dtype=q_TQD.dtype,
        capability=capability(q_TQD.device),
    )
    boxes = tile.boxes and fits_boxes(k_TGD) and fits_boxes(v_TGD)
    launch_prefill(
        q_TQD,
        k_TGD[:, :, None],
        v_TGD[:, :, None],
        boxes=(_box(k_TGD, tile), _box(v_TGD, tile)) if boxes else None,
        table=key_starts,
        query_starts=query_starts,
        context_lens=None,
        group_bounds=group_bounds,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
        sinks_Q=sinks_Q,
        alibi_slopes_Q=alibi_slopes_Q,
        out_TQD=out_TQD,
        lse_TQ=lse_TQ,
        tile=tile,
    )
    return out_TQD


def _box(rows_TGD: Tensor, tile: Tiles) -> TensorDescriptor:
    """Rows as [kv_heads, rows, D], of which the copy engine takes a tile of one head at once."""
    block = [1, tile.positions, padded(rows_TGD.shape[2])]
    return TensorDescriptor.from_tensor(rows_TGD.transpose(0, 1), block)
