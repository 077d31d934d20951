"""Qwen3-MoE (arXiv 2505.09388): Qwen3 with experts, a window on all layers or none."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headway.model.families import llama, qwen2, qwen3
from headway.model.families.fields import flag, indices, integer
from headway.model.spec import DecoderSpec, Experts, LayerSpec, QkNorm
from headway.model.stored import Weights

ARCHITECTURES = ("Qwen3MoeForCausalLM",)
PREFIX, HARMLESS = llama.PREFIX, llama.HARMLESS
DEFAULTS = MappingProxyType({"max_position_embeddings": 32_768, "num_key_value_heads": 4})
EXPERT = "model.layers.{i}.mlp.experts.{e}."
WEIGHTS: Weights = MappingProxyType(
    {
        **qwen3.WEIGHTS,
        "layers.{i}.router": "model.layers.{i}.mlp.gate",
        "layers.{i}.experts.gate": EXPERT + "gate_proj",
        "layers.{i}.experts.up": EXPERT + "up_proj",
        "layers.{i}.experts.down": EXPERT + "down_proj",
    }
)


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "qwen3_moe"; raises ModelError."""
    like = llama.spec({**DEFAULTS, **config, "mlp_bias": False})
    window = qwen2.used_window(config)
    dense, step = indices(config, "mlp_only_layers"), integer(config, "decoder_sparse_step", 1)
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in range(like.num_layers)]
    return replace(
        like,
        family="qwen3_moe",
        layers=tuple(LayerSpec(window=window, sparse=one) for one in sparse),
        qk_norm=QkNorm.HEAD,
        experts=Experts(
            num_experts=integer(config, "num_experts", integer(config, "num_local_experts", 128)),
            top_k=integer(config, "num_experts_per_tok", 8),
            mlp_size=integer(config, "moe_intermediate_size", 768),
            renormalise=flag(config, "norm_topk_prob"),
        ),
    )


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
