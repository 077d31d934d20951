"""The tensors of a decoder, as data: what each is made of, and along which axes ranks share it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from headway.model.spec import DecoderSpec, LayerSpec, QkNorm


class Axis(StrEnum):
    """What runs along a dimension. Those after VOCAB are whole on every rank."""

    Q = "q"  # query heads times head_dim
    KV = "kv"  # KV heads times head_dim
    Q_HEAD = "q_head"
    MLP = "mlp"
    EXPERT_MLP = "expert_mlp"
    VOCAB = "vocab"
    HIDDEN = "hidden"
    HEAD_DIM = "head_dim"
    POSITION = "position"
    EXPERT = "expert"


@dataclass(frozen=True, kw_only=True)
class TensorLayout:
    """One tensor of a rank: its parts stacked by rows, all with the same columns (None: a vector).

    parts: (name in a family's table, what its rows are).
    per_expert: one of these for each expert, stacked along a first dimension.
    first_rank_only: added to what is summed over ranks, so that only rank 0 may hold it.
    """

    name: str
    parts: tuple[tuple[str, Axis], ...]
    columns: Axis | None = None
    per_expert: bool = False
    first_rank_only: bool = False

    @property
    def kind(self) -> str:
        """ "weight" or "bias", of the tensor here and of its parts in the checkpoint."""
        return self.name.rpartition(".")[2]

    @property
    def whole(self) -> str:
        """The table's key for a checkpoint's tensor that holds all parts."""
        return self.name.rpartition(".")[0]


QKV = (("q", Axis.Q), ("k", Axis.KV), ("v", Axis.KV))


def layouts(spec: DecoderSpec) -> Iterator[tuple[TensorLayout, int | None]]:
    """Every tensor that the decoder of `spec` has, with its layer."""
    for layout in _before(spec):
        yield layout, None
    for index, layer in enumerate(spec.layers):
        for layout in _layer(spec, layer):
            yield layout, index
    for layout in _behind(spec):
        yield layout, None


def axis_sizes(spec: DecoderSpec) -> dict[Axis, int]:
    experts = spec.experts
    return {
        Axis.Q: spec.num_q_heads * spec.head_dim,
        Axis.KV: spec.num_kv_heads * spec.head_dim,
        Axis.Q_HEAD: spec.num_q_heads,
        Axis.MLP: spec.mlp_size,
        Axis.EXPERT_MLP: experts.mlp_size if experts else 0,
        Axis.VOCAB: spec.vocab_size,
        Axis.HIDDEN: spec.hidden_size,
        Axis.HEAD_DIM: spec.head_dim,
        Axis.POSITION: spec.max_model_len,
        Axis.EXPERT: experts.num_experts if experts else 0,
    }


def _before(spec: DecoderSpec) -> Iterator[TensorLayout]:
    yield from _linear("embed", (("embed", Axis.VOCAB),), Axis.HIDDEN)
    if spec.learned_positions:
        yield from _linear("positions", (("positions", Axis.POSITION),), Axis.HIDDEN, summed_weight=True)
    if spec.embed_norm:
        yield from _norm(spec, "embed_norm")


def _layer(spec: DecoderSpec, layer: LayerSpec) -> Iterator[TensorLayout]:
    if spec.pre_norm:
        yield from _norm(spec, "attn_norm")
    yield from _linear("qkv", QKV, Axis.HIDDEN, bias=spec.qkv_bias)
    if spec.qk_norm is not QkNorm.NONE:
        by_head = spec.qk_norm is QkNorm.HEAD
        yield from _linear("q_norm", (("q_norm", Axis.HEAD_DIM if by_head else Axis.Q),))
        yield from _linear("k_norm", (("k_norm", Axis.HEAD_DIM if by_head else Axis.KV),))
    if spec.sinks:
        yield from _linear("sinks", (("sinks", Axis.Q_HEAD),))
    yield from _linear("o", (("o", Axis.HIDDEN),), Axis.Q, bias=spec.o_bias, summed=True)
    if spec.post_norm:
        yield from _norm(spec, "attn_post_norm")
    if spec.pre_norm and not spec.shared_norm:
        yield from _norm(spec, "mlp_norm")
    yield from _experts(spec) if layer.sparse else _mlp(spec)
    if spec.post_norm:
        yield from _norm(spec, "mlp_post_norm")


def _mlp(spec: DecoderSpec) -> Iterator[TensorLayout]:
    if spec.gated:
        parts = (("gate", Axis.MLP), ("up", Axis.MLP))
        yield from _linear("gate_up", parts, Axis.HIDDEN, bias=spec.mlp_bias)
    else:
        yield from _linear("up", (("up", Axis.MLP),), Axis.HIDDEN, bias=spec.mlp_bias)
    yield from _linear("down", (("down", Axis.HIDDEN),), Axis.MLP, bias=spec.mlp_bias, summed=True)


def _experts(spec: DecoderSpec) -> Iterator[TensorLayout]:
    assert spec.experts is not None
    bias = spec.experts.bias
    parts = (("experts.gate", Axis.EXPERT_MLP), ("experts.up", Axis.EXPERT_MLP))
    down = (("experts.down", Axis.HIDDEN),)
    yield from _linear("router", (("router", Axis.EXPERT),), Axis.HIDDEN, bias=spec.experts.router_bias)
    yield from _linear("experts.gate_up", parts, Axis.HIDDEN, bias=bias, per_expert=True)
    yield from _linear("experts.down", down, Axis.EXPERT_MLP, bias=bias, per_expert=True, summed=True)


def _behind(spec: DecoderSpec) -> Iterator[TensorLayout]:
    yield from _norm(spec, "norm")
    if not spec.tied_head:
        yield from _linear("head", (("head", Axis.VOCAB),), Axis.HIDDEN)


def _norm(spec: DecoderSpec, name: str) -> Iterator[TensorLayout]:
    yield from _linear(name, ((name, Axis.HIDDEN),), bias=spec.norm_bias)


def _linear(
    name: str,
    parts: tuple[tuple[str, Axis], ...],
    columns: Axis | None = None,
    *,
    bias: bool = False,
    per_expert: bool = False,
    summed: bool = False,
    summed_weight: bool = False,
) -> Iterator[TensorLayout]:
    """A weight and, with `bias`, its bias. `summed`: ranks' results are added up: one has the bias."""
    yield TensorLayout(
        name=f"{name}.weight",
        parts=parts,
        columns=columns,
        per_expert=per_expert,
        first_rank_only=summed_weight,
    )
    if bias:
        yield TensorLayout(name=f"{name}.bias", parts=parts, per_expert=per_expert, first_rank_only=summed)
