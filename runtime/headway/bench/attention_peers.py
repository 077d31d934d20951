"""Other ways to compute attention on a GPU: PyTorch's backends, and FlashInfer where it is installed."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from headway.bench.contest import Contender

BACKENDS = {
    "PyTorch flash": SDPBackend.FLASH_ATTENTION,
    "PyTorch cuDNN": SDPBackend.CUDNN_ATTENTION,
}
FLASHINFER = "FlashInfer"
WORKSPACE_BYTES = 128 << 20  # what its documentation recommends


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> dict[str, Contender]:
    """PyTorch's backends over [B, heads, L, D]."""

    def run(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    return {name: lambda backend=backend: run(backend) for name, backend in BACKENDS.items()}  # type: ignore[misc]


def flashinfer_decode(
    q_BQD: Tensor,
    pools: Sequence[tuple[Tensor, Tensor]],
    *,
    page_table_BP: Tensor,
    lengths: Sequence[int],
) -> Mapping[str, Contender]:
    """Paged decode over all `pools`, one after the other; planned before, on the host, so not timed.

    Empty where FlashInfer is not installed.
    """
    if find_spec("flashinfer") is None:
        return {}
    _, num_kv_heads, page_size, head_dim = pools[0][0].shape
    counts = [-(-length // page_size) for length in lengths]
    wrapper = import_module("flashinfer").BatchDecodeWithPagedKVCacheWrapper(
        torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=q_BQD.device),
        kv_layout="HND",
        use_tensor_cores=True,
    )
    wrapper.plan(
        torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
        torch.cat([row_P[:count] for row_P, count in zip(page_table_BP, counts, strict=True)]),
        torch.tensor([(length - 1) % page_size + 1 for length in lengths], dtype=torch.int32),
        q_BQD.shape[1],
        num_kv_heads,
        head_dim,
        page_size,
        q_data_type=q_BQD.dtype,
        kv_data_type=q_BQD.dtype,
    )
    return {FLASHINFER: lambda: [wrapper.run(q_BQD, pool) for pool in pools]}
