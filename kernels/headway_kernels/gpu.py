"""The ops on a CUDA device: attention in Triton, the rest as `reference` has it. The same functions."""

from headway_kernels.decode_plan import plan_decode
from headway_kernels.flash_prefill import flash_prefill
from headway_kernels.merge import merge
from headway_kernels.paged_decode import decode_bytes, paged_decode
from headway_kernels.reference import (
    clamped_silu_mul,
    gelu_mul,
    kv_write,
    layer_norm,
    moe,
    rms_norm,
    route,
    silu_mul,
)

__all__ = [
    "clamped_silu_mul",
    "decode_bytes",
    "flash_prefill",
    "gelu_mul",
    "kv_write",
    "layer_norm",
    "merge",
    "moe",
    "paged_decode",
    "plan_decode",
    "rms_norm",
    "route",
    "silu_mul",
]
