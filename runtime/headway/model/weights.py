"""Which bytes of a checkpoint a rank needs, and where they go. Integers only: plan and loader agree.

A rank's tensors, those that its spec asks for (`i` the layer; q, kv, I, V what the rank owns of heads, MLP
and vocabulary; E experts, P positions). Norms may have a bias, too, and matrices where .bias is named:

    embed.weight [V, H]                         layers.{i}.mlp_norm.weight [H]
    positions.weight [P, H] on rank 0           layers.{i}.gate_up.weight [2*I, H], .bias: gate rows, up rows;
    embed_norm.weight [H]                         or layers.{i}.up.weight [I, H], .bias
    layers.{i}.attn_norm.weight [H]             layers.{i}.down.weight [H, I], .bias on rank 0
    layers.{i}.qkv.weight [(q+2*kv)*D, H],      layers.{i}.router.weight [E, H], .bias
      .bias: q rows, k rows, v rows             layers.{i}.experts.gate_up.weight [E, 2*I, H], .bias
    layers.{i}.q_norm.weight [D] or [q*D]       layers.{i}.experts.down.weight [E, H, I], .bias on rank 0
    layers.{i}.k_norm.weight [D] or [kv*D]      layers.{i}.mlp_post_norm.weight [H]
    layers.{i}.sinks.weight [q]                 norm.weight [H]
    layers.{i}.o.weight [H, q*D],               head.weight [V, H], unless tied to embed
      .bias on rank 0
    layers.{i}.attn_post_norm.weight [H]
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from headway.core.errors import ModelError
from headway.model.checkpoint import DTYPE_BYTES, TensorInfo
from headway.model.families import FAMILIES, Family
from headway.model.layout import Axis, axis_sizes, layouts
from headway.model.reads import Owned, Read, TensorReads
from headway.model.spec import DecoderSpec
from headway.model.stored import Stored
from headway.sharding.heads import HeadPlan, RankHeads
from headway.sharding.split import split_evenly

QUANTISED = re.compile(r"F[468](_\w+)?|[IU](4|8|32)")  # dtypes that hold weights in fewer bits


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """What rank `rank` holds. tensors: of the decoder, those it has a part of; owned: of each axis."""

    rank: int
    heads: RankHeads
    mlp: range
    vocab: range
    tensors: tuple[TensorReads, ...]
    owned: Owned

    @cached_property
    def targets(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each of its tensors."""
        return {tensor.target: tensor.shape(self.owned) for tensor in self.tensors}

    @cached_property
    def reads(self) -> tuple[Read, ...]:
        """What fills them. Only loading asks: models with many experts have a hundred thousand."""
        return tuple(read for tensor in self.tensors for read in tensor.reads(self.owned))

    def target_bytes(self, dtype_bytes: int) -> int:
        """Bytes of the rank's tensors at `dtype_bytes` a value."""
        return sum(map(math.prod, self.targets.values())) * dtype_bytes

    def source_bytes(self, checkpoint: Mapping[str, TensorInfo]) -> int:
        """Bytes the rank reads of `checkpoint`."""
        return sum(read.num_values * DTYPE_BYTES[checkpoint[read.source].dtype] for read in self.reads)


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """A model's weights over ranks; `mlp`, `expert_mlp` and `vocab` have a range for each."""

    spec: DecoderSpec
    family: Family
    heads: HeadPlan
    mlp: tuple[range, ...]
    expert_mlp: tuple[range, ...]
    vocab: tuple[range, ...]

    def rank(self, rank: int) -> RankPlan:
        heads, mlp, vocab = self.heads.ranks[rank], self.mlp[rank], self.vocab[rank]
        owned = {axis: range(size) for axis, size in axis_sizes(self.spec).items()} | {
            Axis.Q: _scaled(heads.q, self.spec.head_dim),
            Axis.KV: _scaled(heads.kv, self.spec.head_dim),
            Axis.Q_HEAD: heads.q,
            Axis.MLP: mlp,
            Axis.EXPERT_MLP: self.expert_mlp[rank],
            Axis.VOCAB: vocab,
        }
        mine = (tensor for tensor in self._tensors if not (tensor.layout.first_rank_only and rank))
        return RankPlan(
            rank=rank,
            heads=heads,
            mlp=mlp,
            vocab=vocab,
            tensors=tuple(mine),
            owned=owned,
        )

    @cached_property
    def sources(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint must have, with its full shape."""
        return dict(source for tensor in self._tensors for source in tensor.sources())

    @cached_property
    def _tensors(self) -> tuple[TensorReads, ...]:
        weights, sizes = self.family.weights(self.spec), axis_sizes(self.spec)
        return tuple(
            TensorReads(
                layout=layout,
                layer=layer,
                weights=weights,
                sizes=sizes,
                num_groups=self.spec.num_kv_heads,
            )
            for layout, layer in layouts(self.spec)
        )

    def named(self, checkpoint: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        """`checkpoint` under the family's names: one saved without the head lacks their first word."""
        prefix = self.family.PREFIX
        if not prefix or any(name.startswith(prefix) for name in checkpoint):
            return checkpoint
        inner = {name for name in self.sources if name.startswith(prefix)}
        return {prefix + name if prefix + name in inner else name: info for name, info in checkpoint.items()}

    def check(self, checkpoint: Mapping[str, TensorInfo]) -> None:
        """Raise ModelError unless `checkpoint` has just the tensors, shapes and dtypes that are needed."""
        folder = next((str(info.file.parent) for info in checkpoint.values()), "the checkpoint")
        extra = list(self._left_over(checkpoint))
        self._check_unquantised(folder, checkpoint, extra)
        if missing := [name for name in self.sources if name not in checkpoint]:
            first = f"{missing[0]} {list(self.sources[missing[0]])}"
            raise ModelError(f"{folder} lacks tensor {first}{_more(missing)}")
        if extra:
            first = f"{extra[0]} {list(checkpoint[extra[0]].shape)}"
            raise ModelError(
                f"{folder} has tensor {first}{_more(extra)}, "
                f"which a {self.spec.family} model with this config.json does not use"
            )
        for name, shape in self.sources.items():
            found = checkpoint[name]
            tensor = f"{found.file}: tensor {name}"
            if found.shape != shape:
                raise ModelError(f"{tensor} must have shape {list(shape)}, found {list(found.shape)}")
            if found.dtype not in DTYPE_BYTES:
                raise ModelError(f"{tensor} must be one of {', '.join(DTYPE_BYTES)}, found {found.dtype}")

    def _check_unquantised(self, folder: str, checkpoint: Mapping[str, TensorInfo], extra: list[str]) -> None:
        """Weights in fewer bits have a config of their own, but some checkpoints come without it."""
        for name in (*self.sources, *extra):
            if name in checkpoint and QUANTISED.fullmatch(dtype := checkpoint[name].dtype):
                what = f"{folder} is quantised (tensor {name} is {dtype})"
                raise ModelError(f"{what}; only unquantised weights are supported")

    def _left_over(self, checkpoint: Mapping[str, TensorInfo]) -> Iterator[str]:
        patterns = [*self.family.HARMLESS]
        if self.spec.tied_head:
            head = Stored.of(self.family.weights(self.spec)["head"])
            patterns.append(re.escape(head.tensor("weight", layer=None, expert=None)))
        harmless = re.compile("|".join(patterns))
        return (name for name in checkpoint if name not in self.sources and not harmless.fullmatch(name))


def shard_plan(spec: DecoderSpec, world_size: int) -> ShardPlan:
    """Share out the weights of `spec`; raises ConfigError where there is not enough for every rank."""
    expert_size = spec.experts.mlp_size if spec.experts else spec.mlp_size
    return ShardPlan(
        spec=spec,
        family=FAMILIES[spec.family],
        heads=HeadPlan(spec.num_q_heads, spec.num_kv_heads, world_size),
        mlp=split_evenly(spec.mlp_size, world_size, name="the model's MLP size"),
        expert_mlp=split_evenly(expert_size, world_size, name="the MLP size of the model's experts"),
        vocab=split_evenly(spec.vocab_size, world_size, name="the model's vocabulary"),
    )


def _scaled(heads: range, head_dim: int) -> range:
    return range(heads.start * head_dim, heads.stop * head_dim)


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
