"""The ops on a CUDA device, in Triton: what a decoder and a sampler call, as `reference` has it."""

from headway_kernels.decode_plan import plan_decode
from headway_kernels.flash_prefill import flash_prefill
from headway_kernels.flash_prefill_dense import flash_prefill_dense
from headway_kernels.gated_mlp import clamped_silu_mul, gelu_mul, silu_mul
from headway_kernels.kv_write import kv_write
from headway_kernels.linear import linear
from headway_kernels.log_softmax import log_softmax
from headway_kernels.merge import merge
from headway_kernels.moe import moe
from headway_kernels.moe_sizes import moe_sizes
from headway_kernels.norm import layer_norm, rms_norm
from headway_kernels.paged_decode import decode_bytes, paged_decode
from headway_kernels.penalise import penalise_
from headway_kernels.route import route
from headway_kernels.sample import choose, sample, sample_shard
from headway_kernels.sample_floors import floors

__all__ = [
    "choose",
    "clamped_silu_mul",
    "decode_bytes",
    "flash_prefill",
    "flash_prefill_dense",
    "floors",
    "gelu_mul",
    "kv_write",
    "layer_norm",
    "linear",
    "log_softmax",
    "merge",
    "moe",
    "moe_sizes",
    "paged_decode",
    "penalise_",
    "plan_decode",
    "rms_norm",
    "route",
    "sample",
    "sample_shard",
    "silu_mul",
]
