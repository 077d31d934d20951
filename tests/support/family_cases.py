"""A row a family and kind of it: a tiny model of odd shapes, as transformers' config has it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """config: what differs from SIZES. attention: transformers' way."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    attention: str = "eager"
    prompt_lengths: tuple[int, ...] = (3, 29, 14)
    seed: int = 5  # of the weights; one whose tokens do not just repeat


SIZES = {
    "vocab_size": 97,
    "hidden_size": 42,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
HEAD_DIM = {"head_dim": 8}  # of families that let it differ from hidden_size / num_attention_heads
WIDE = {"hidden_size": 48}  # of families that do not
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 11}
LONGROPE = {
    "hidden_size": 72,
    "partial_rotary_factor": 0.5,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.3, 1.9], "long_factor": [1.0, 2.5, 5.0]},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FALCON = {"hidden_size": 56, "num_attention_heads": 7, "ffn_hidden_size": 90}
SEVEN_HEADS = {"hidden_size": 56, "num_attention_heads": 7, "intermediate_size": 51}
CASES = {
    "llama": Case("llama", HEAD_DIM),
    "llama with biases": Case(
        "llama", HEAD_DIM | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6}
    ),
    "llama with dynamic rope": Case(
        "llama",
        HEAD_DIM | {"max_position_embeddings": 16, "rope_scaling": {"rope_type": "dynamic", "factor": 8.0}},
    ),
    "qwen2": Case("qwen2", WIDE | {"rope_scaling": YARN, "tie_word_embeddings": True}),
    "qwen2 with a window": Case(
        "qwen2", WIDE | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    ),
    "qwen3": Case(
        "qwen3",
        HEAD_DIM
        | {"num_key_value_heads": 3, "attention_bias": True, "use_sliding_window": True, "sliding_window": 9}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen3_moe": Case(
        "qwen3_moe",
        HEAD_DIM | EXPERTS | {"norm_topk_prob": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    "qwen3_moe with dense layers": Case(
        "qwen3_moe",
        HEAD_DIM
        | EXPERTS
        | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
        | {"attention_bias": True, "use_sliding_window": True, "sliding_window": 7},
    ),
    "mistral": Case("mistral", HEAD_DIM | {"sliding_window": 7}),
    "mixtral": Case(
        "mixtral",
        HEAD_DIM
        | {"intermediate_size": 25, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 7},
    ),
    "olmo2": Case("olmo2", WIDE | {"rope_scaling": LLAMA3}),
    "olmo2 with one kv head": Case(
        "olmo2", {"num_attention_heads": 7, "num_key_value_heads": 1, "attention_bias": True}, seed=6
    ),
    "phi3": Case("phi3", LONGROPE | {"original_max_position_embeddings": 96, "sliding_window": 7}),
    "phi3 beyond its first context": Case(
        "phi3", LONGROPE | {"original_max_position_embeddings": 2, "tie_word_embeddings": True}
    ),
    "gemma2": Case(
        "gemma2",
        HEAD_DIM | {"sliding_window": 7, "query_pre_attn_scalar": 12, "tie_word_embeddings": True},
    ),
    "gemma3": Case(
        "gemma3_text",
        HEAD_DIM
        | {"sliding_window": 7, "sliding_window_pattern": 3, "query_pre_attn_scalar": 12}
        | {"rope_local_base_freq": 300.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    ),
    "gemma3 with images": Case(
        "gemma3",
        {
            "text_config": SIZES | HEAD_DIM | {"sliding_window": 7, "sliding_window_pattern": 2},
            "vision_config": {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3 with one kv head": Case(
        "gemma3_text",
        HEAD_DIM
        | {"num_attention_heads": 7, "num_key_value_heads": 1, "sliding_window": 5, "attention_bias": True}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"final_logit_softcapping": 3.0, "tie_word_embeddings": True},
        seed=7,
    ),
    "gpt-oss": Case(
        "gpt_oss",
        HEAD_DIM
        | {"intermediate_size": 11, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 7}
        | {"swiglu_limit": 0.7, "rope_scaling": YARN | {"truncate": False}},
    ),
    "gpt-oss without biases of attention": Case(
        "gpt_oss",
        HEAD_DIM
        | {"num_attention_heads": 7, "num_key_value_heads": 7, "intermediate_size": 9, "swiglu_alpha": 0.8}
        | {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 4, "attention_bias": False},
    ),
    "falcon 7b": Case("falcon", FALCON),
    "falcon 40b": Case(
        "falcon",
        FALCON | {"num_attention_heads": 14, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    "falcon 11b": Case(
        "falcon",
        FALCON
        | {
            "num_attention_heads": 14,
            "num_kv_heads": 7,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
        },
    ),
    "falcon rw": Case(
        "falcon",
        FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        attention="sdpa",
    ),
    "gpt neox": Case("gpt_neox", SEVEN_HEADS),
    "gpt neox, sequential": Case(
        "gpt_neox",
        SEVEN_HEADS
        | {
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5},
        },
    ),
    "gpt2": Case("gpt2", SEVEN_HEADS | {"n_inner": 51, "tie_word_embeddings": True}),
    "mpt": Case(
        "mpt",
        SEVEN_HEADS | {"attn_config": {"clip_qkv": 0.9, "softmax_scale": 0.2}, "tie_word_embeddings": True},
    ),
    "bloom": Case("bloom", SEVEN_HEADS),
    "starcoder2": Case("starcoder2", HEAD_DIM | {"sliding_window": 7, "tie_word_embeddings": True}),
}
