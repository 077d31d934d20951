"""StarCoder2 (arXiv 2402.19173): Llama's names and attention, with LayerNorm, biases and an MLP without a
gate; its published models see a window of positions.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from headway.model.families import llama
from headway.model.families.fields import dtype, eos_ids, flag, integer, number, optional_integer
from headway.model.families.rope import context, rope
from headway.model.families.shared import activation, only
from headway.model.spec import DecoderSpec, LayerSpec, Norm
from headway.model.stored import Weights

ARCHITECTURES = ("Starcoder2ForCausalLM",)
PREFIX, HARMLESS = llama.PREFIX, llama.HARMLESS
WEIGHTS: Weights = MappingProxyType(
    {
        **llama.WEIGHTS,
        "layers.{i}.up": "model.layers.{i}.mlp.c_fc",
        "layers.{i}.down": "model.layers.{i}.mlp.c_proj",
    }
)
ONLY = MappingProxyType({"mlp_type": "default", "norm_type": "layer_norm"})  # of published configs


def spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder of a config.json with model_type "starcoder2"; raises ModelError."""
    only(config, ONLY)
    config = {"max_position_embeddings": 4096, **config}
    hidden_size = integer(config, "hidden_size")
    num_q_heads = integer(config, "num_attention_heads", high=1024)
    head_dim = integer(config, "head_dim", hidden_size // num_q_heads, high=4096)
    vocab_size = integer(config, "vocab_size")
    layer = LayerSpec(window=optional_integer(config, "sliding_window"))
    bias = flag(config, "use_bias", True)
    rotary = rope(config, head_dim)
    return DecoderSpec(
        family="starcoder2",
        hidden_size=hidden_size,
        num_q_heads=num_q_heads,
        num_kv_heads=integer(config, "num_key_value_heads", 2, high=1024),
        head_dim=head_dim,
        mlp_size=integer(config, "intermediate_size"),
        vocab_size=vocab_size,
        max_model_len=context(config, rotary),
        layers=(layer,) * integer(config, "num_hidden_layers", high=4096),
        rope=rotary,
        norm=Norm.LAYER,
        norm_eps=number(config, "norm_epsilon", 1e-5),
        norm_bias=True,
        qkv_bias=bias,
        o_bias=bias,
        activation=activation(config, "hidden_act", "gelu_pytorch_tanh"),
        gated=False,
        mlp_bias=bias,
        tied_head=flag(config, "tie_word_embeddings", True),
        dtype=dtype(config),
        eos_token_ids=eos_ids(config, vocab_size),
    )


def weights(spec: DecoderSpec) -> Weights:
    return WEIGHTS
