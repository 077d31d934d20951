"""What the copy engine of Hopper (TMA) is told of keys and values, and whether it takes them.

A box, its unit, has the positions that lie in a row wherever a tile begins, and 128 bytes of each; of pages
all values, where those are two or more whole runs of that.
"""

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from headway_kernels.hopper_fetch import BOX_ROWS, BOX_VALUES
from headway_kernels.launch import capability
from headway_kernels.tiles import HOPPER, padded

DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


def takes(q: Tensor, k: Tensor, v: Tensor, *, paged: bool) -> bool:
    """Whether the kernels for Hopper take these: on Hopper, in half precision, not in Triton's interpreter,
    which has no Gluon. Rows begin at multiples of 16 bytes, and pages have positions by 16; queries, which
    a group copies for itself, at multiples of 16 values, for that is what Triton compiles for.

    k, v: pools [pages, kv_heads, page_size, D], or dense rows [T, kv_heads, 1, D].
    """
    places = [one.data_ptr() for one in (k, v)]
    places += [stride * one.itemsize for one in (k, v) for stride in one.stride()[:-1]]
    return (
        capability(k.device)[0] == HOPPER[0]
        and not triton.knobs.runtime.interpret
        and k.dtype in DTYPES
        and k.numel() > 0
        and (not paged or (k.shape[2] % 16 == 0 and k.is_contiguous() and v.is_contiguous()))
        and all(place % 16 == 0 for place in places)
        and all(place % 16 == 0 for place in (q.data_ptr(), *q.stride()[:2]))
    )


def boxes(k: Tensor, v: Tensor, positions: int, *, paged: bool) -> tuple[TensorDescriptor, TensorDescriptor]:
    """(boxes of K, of V) for tiles of so many positions."""
    page_size, head_dim = k.shape[2:]
    in_a_row = min(positions, page_size & -page_size)  # wherever a tile begins, no box goes beyond a page
    if paged and head_dim > BOX_VALUES.value and head_dim % BOX_VALUES.value == 0:
        chunks = head_dim // BOX_VALUES.value
        block = [
            in_a_row // BOX_ROWS.value,
            padded(chunks, 1),
            BOX_ROWS.value,
            BOX_VALUES.value,
        ]
        rows = [one.view(-1, BOX_ROWS.value, chunks, BOX_VALUES.value).transpose(1, 2) for one in (k, v)]
    elif paged:
        block = [in_a_row, BOX_VALUES.value]
        rows = [one.view(-1, head_dim) for one in (k, v)]
    else:
        block = [1, positions, BOX_VALUES.value]
        rows = [one[:, :, 0].transpose(0, 1) for one in (k, v)]
    layout = gl.NVMMASharedLayout.get_default_for(block, DTYPES[k.dtype])
    k_box, v_box = (TensorDescriptor.from_tensor(one, block, layout) for one in rows)
    return k_box, v_box
