"""What a decoder is made of, as data. A family's file turns a Hugging Face config into a DecoderSpec;
the one decoder in `headway.model.decoder` runs any of them. No torch here: plans and front ends read it too.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from headway.core.errors import ModelError


class Norm(StrEnum):
    RMS = "rms"  # arXiv 1910.07467
    LAYER = "layer"  # arXiv 1607.06450


class QkNorm(StrEnum):
    """What of the queries, and of the keys, is normalised together."""

    NONE = "none"
    HEAD = "head"  # each head for itself (Qwen3)
    ALL = "all"  # all heads of a token (OLMo 2)


class Activation(StrEnum):
    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"  # the approximation by tanh
    CLAMPED_SILU = "clamped_silu"  # gpt-oss: see headway_kernels.reference.clamped_silu_mul


class RopeKind(StrEnum):
    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embedding (arXiv 2104.09864), in the half-split layout of Hugging Face checkpoints.

    factor and what follows it are those of `rope_scaling` in config.json, by `kind`.
    """

    theta: float
    dim: int  # rotated values at the start of each head
    kind: RopeKind = RopeKind.DEFAULT
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_len: int = 8192
    attention_factor: float = 1.0  # scales cosines and sines
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()  # a rotated pair each
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.theta <= 1:
            raise ModelError(f"rope_theta must be above 1, got {self.theta}")
        if self.kind is RopeKind.DYNAMIC and self.dim <= 2:
            raise ModelError(f"dynamic rope scaling needs more than 2 rotated values a head, got {self.dim}")
        if self.kind is RopeKind.LONGROPE:
            for name in ("short_factors", "long_factors"):
                if len(getattr(self, name)) != self.dim // 2:
                    raise ModelError(
                        f"rope scaling: {name.replace('factors', 'factor')} must have {self.dim // 2} "
                        f"numbers, got {len(getattr(self, name))}"
                    )


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A layer of experts instead of one MLP (arXiv 1701.06538): each token takes the `top_k` likeliest.

    mlp_size: of each expert. renormalise: the weights of the chosen ones are made to sum to one.
    router_bias, bias: whether the router and every expert's matrices have one.
    """

    num_experts: int
    top_k: int
    mlp_size: int
    renormalise: bool = True
    router_bias: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ModelError(f"experts a token must be from 1 to {self.num_experts}, got {self.top_k}")


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What may differ from layer to layer."""

    window: int | None = None  # a query sees this many positions, its own included; None sees all
    rope: Rope | None = None  # instead of the decoder's
    sparse: bool = False  # the decoder's experts instead of an MLP


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A decoder-only transformer. Sizes are in values; `layers` has one entry a layer.

    A block has a norm before attention and MLP (pre_norm), behind them (post_norm), or both. In a parallel
    block both read the same residual, through one norm if it is shared.

    norm_offset: added to the weights of every norm (Gemma's are stored less one).
    alibi_slopes: of each query head (arXiv 2108.12409): what a score loses, a position back.
    attention_softcap, logits_softcap: x becomes cap * tanh(x / cap).
    clip_qkv: queries, keys and values are cut to this magnitude.
    sinks: each query head has a learnt score that takes its share of the softmax, and has no value.
    gated: the MLP's activation multiplies a second projection. clamp, alpha: of CLAMPED_SILU.
    """

    family: str
    hidden_size: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    vocab_size: int
    max_model_len: int
    layers: tuple[LayerSpec, ...]
    # positions
    rope: Rope | None = None
    learned_positions: bool = False  # a table of max_model_len
    alibi_slopes: tuple[float, ...] = ()
    # norms and the residual
    norm: Norm = Norm.RMS
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    norm_bias: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    embed_norm: bool = False
    parallel: bool = False
    shared_norm: bool = False
    # attention
    qkv_bias: bool = False
    o_bias: bool = False
    attention_scale: float = field(default=0.0)  # 0 means head_dim ** -0.5
    attention_softcap: float | None = None
    clip_qkv: float | None = None
    qk_norm: QkNorm = QkNorm.NONE
    sinks: bool = False
    # MLP
    activation: Activation = Activation.SILU
    gated: bool = True
    mlp_bias: bool = False
    clamp: float = 7.0
    alpha: float = 1.702
    experts: Experts | None = None
    # embedding and head
    embed_scale: float = 1.0
    tied_head: bool = False
    logits_softcap: float | None = None
    # the checkpoint's
    dtype: str = "bfloat16"
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_q_heads % self.num_kv_heads:
            raise ModelError(
                f"num_attention_heads ({self.num_q_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_kv_heads})"
            )
        for rope in self.ropes:
            if rope.dim % 2 or not 2 <= rope.dim <= self.head_dim:
                raise ModelError(f"rotary dim must be even and at most {self.head_dim}, got {rope.dim}")
        if len(self.alibi_slopes) not in (0, self.num_q_heads):
            raise ModelError(f"alibi_slopes must be {self.num_q_heads}, got {len(self.alibi_slopes)}")
        assert self.pre_norm or self.post_norm, "a block needs a norm"
        assert not (self.parallel and self.post_norm), "a parallel block has norms before it alone"
        assert self.parallel or not self.shared_norm, "only a parallel block shares its norm"
        assert self.gated or self.activation is not Activation.CLAMPED_SILU, "it needs a gate"
        assert self.experts is not None or not any(layer.sparse for layer in self.layers)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def scale(self) -> float:
        return self.attention_scale or self.head_dim**-0.5

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct windows in order of first use: one page group each."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

    @property
    def layer_groups(self) -> tuple[int, ...]:
        """The page group of each layer."""
        groups = {window: group for group, window in enumerate(self.windows)}
        return tuple(groups[layer.window] for layer in self.layers)

    def page_bytes(self, *, num_kv_heads: int, page_size: int, dtype_bytes: int) -> tuple[int, ...]:
        """Bytes of K and V of one page in all layers of each page group, with `num_kv_heads` on a rank."""
        layer = 2 * num_kv_heads * page_size * self.head_dim * dtype_bytes
        return tuple(layer * self.layer_groups.count(group) for group in range(len(self.windows)))

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The distinct rotary embeddings in order of first use; none where positions come otherwise."""
        used = (layer.rope or self.rope for layer in self.layers)
        return tuple(dict.fromkeys(rope for rope in used if rope is not None))

    @property
    def layer_ropes(self) -> tuple[int | None, ...]:
        """The place in `ropes` of each layer's."""
        places: dict[Rope | None, int | None] = {rope: index for index, rope in enumerate(self.ropes)}
        return tuple(places.get(layer.rope or self.rope) for layer in self.layers)
