"""The decoder's logits against transformers', through every way a prompt can be cut and ranks be split."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from headway.model.batch import GroupInput, ModelInput
from headway.model.collectives import Collectives, SoloCollectives, ThreadCollectives
from headway.model.decoder import Decoder
from headway.model.spec import DecoderSpec, LayerSpec, Rope
from headway.sharding.heads import RankHeads

HIDDEN, HEAD_DIM, MLP, VOCAB = 56, 8, 50, 61
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Split:
    """What one rank has of 14 query heads, 2 KV heads, the MLP and the vocabulary."""

    q: range
    kv: range
    bounds: tuple[int, ...]
    mlp: range
    vocab: range


SPLITS = {
    1: [Split(range(14), range(2), (0, 7, 14), range(50), range(61))],
    2: [
        Split(range(7), range(1), (0, 7), range(25), range(31)),
        Split(range(7, 14), range(1, 2), (0, 7), range(25, 50), range(31, 61)),
    ],
    3: [
        Split(range(5), range(1), (0, 5), range(17), range(21)),
        Split(range(5, 10), range(2), (0, 2, 5), range(17, 34), range(21, 41)),
        Split(range(10, 14), range(1, 2), (0, 4), range(34, 50), range(41, 61)),
    ],
}
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": 2,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that attention is far from uniform, norms and biases far from trivial."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=1.5 * weight.shape[-1] ** -0.5 if weight.dim() == 2 else 0.2)
            if name.endswith("norm.weight"):
                weight.add_(1)
    return model.eval()


def llama(*, bias: bool, tied: bool) -> tuple[PreTrainedModel, DecoderSpec]:
    config = LlamaConfig(**SIZES, attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied)
    spec = make_spec((LayerSpec(), LayerSpec()), qkv_bias=bias, o_bias=bias, mlp_bias=bias, tied_head=tied)
    return randomised(LlamaForCausalLM(config)), spec


def make_spec(layers: tuple[LayerSpec, ...], **options: Any) -> DecoderSpec:
    return DecoderSpec(
        family="test",
        hidden_size=HIDDEN,
        num_q_heads=14,
        num_kv_heads=2,
        head_dim=HEAD_DIM,
        mlp_size=MLP,
        vocab_size=VOCAB,
        max_model_len=128,
        layers=layers,
        rope=Rope(theta=10_000.0, dim=HEAD_DIM),
        **options,
    )


def rank_params(model: PreTrainedModel, split: Split, rank: int) -> dict[str, Tensor]:
    state = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def rows(name: str, part: range, width: int = 1) -> Tensor:
        return state[name][part.start * width : part.stop * width]

    def columns(name: str, part: range, width: int = 1) -> Tensor:
        return state[name][:, part.start * width : part.stop * width]

    params = {"embed.weight": rows("model.embed_tokens.weight", split.vocab)}
    params["norm.weight"] = state["model.norm.weight"]
    if "lm_head.weight" in state:
        params["head.weight"] = rows("lm_head.weight", split.vocab)
    for i in range(2):
        theirs, ours = f"model.layers.{i}.", f"layers.{i}."
        attn, mlp = theirs + "self_attn.", theirs + "mlp."
        params[ours + "attn_norm.weight"] = state[theirs + "input_layernorm.weight"]
        params[ours + "mlp_norm.weight"] = state[theirs + "post_attention_layernorm.weight"]
        params[ours + "o.weight"] = columns(attn + "o_proj.weight", split.q, HEAD_DIM)
        params[ours + "down.weight"] = columns(mlp + "down_proj.weight", split.mlp)
        for kind in ("weight", "bias"):
            if f"{attn}q_proj.{kind}" in state:
                heads = (("q", split.q), ("k", split.kv), ("v", split.kv))
                params[f"{ours}qkv.{kind}"] = torch.cat(
                    [rows(f"{attn}{x}_proj.{kind}", part, HEAD_DIM) for x, part in heads]
                )
            if f"{mlp}up_proj.{kind}" in state:
                params[f"{ours}gate_up.{kind}"] = torch.cat(
                    [rows(f"{mlp}{x}_proj.{kind}", split.mlp) for x in ("gate", "up")]
                )
        for name, bias in (("o", attn + "o_proj.bias"), ("down", mlp + "down_proj.bias")):
            if rank == 0 and bias in state:
                params[f"{ours}{name}.bias"] = state[bias]
    return params


@dataclass
class Replica:
    """Ranks in threads, pools, and just enough bookkeeping to step through sequences."""

    spec: DecoderSpec
    decoders: list[Decoder]
    page_size: int
    pools: list[tuple[list[Tensor], list[Tensor]]]
    lengths: list[int] = field(default_factory=lambda: [0] * 4)

    @classmethod
    def of(cls, model: PreTrainedModel, spec: DecoderSpec, world_size: int, page_size: int) -> "Replica":
        group: Sequence[Collectives] = (
            [SoloCollectives()] if world_size == 1 else ThreadCollectives.group(world_size, 30)
        )
        decoders, pools = [], []
        for rank, split in enumerate(SPLITS[world_size]):
            heads = RankHeads(q=split.q, kv=split.kv, group_bounds=split.bounds)
            params = rank_params(model, split, rank)
            decoders.append(Decoder(spec, heads, params, split.vocab, group[rank]))
            shape = (4 * 64 // page_size, len(split.kv), page_size, HEAD_DIM)
            pools.append(tuple([torch.full(shape, torch.nan) for _ in spec.layers] for _ in "kv"))
        return cls(spec, decoders, page_size, pools)

    def step(self, work: dict[int, Tensor]) -> Tensor:
        """Compute these tokens of these sequences, those with a single one as decoding first."""
        rows = sorted(work, key=lambda row: len(work[row]) > 1)
        batch = self._batch(rows, [work[row] for row in rows])
        sizes = [len(split.vocab) for split in SPLITS[len(self.decoders)]]

        def run(rank: int) -> Tensor:
            decoder = self.decoders[rank]
            try:
                return decoder.collectives.gather_vocab(decoder.forward(batch, *self.pools[rank]), sizes)
            except BaseException:
                decoder.collectives.close()
                raise

        with ThreadPoolExecutor(len(self.decoders)) as threads:
            results = list(threads.map(run, range(len(self.decoders))))
        for other in results[1:]:
            assert torch.equal(other, results[0])
        return results[0][[rows.index(row) for row in work]]

    def _batch(self, rows: list[int], tokens: list[Tensor]) -> ModelInput:
        num_decode = sum(len(part) == 1 for part in tokens)
        counts = [len(part) for part in tokens]
        starts = [self.lengths[row] for row in rows]
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count
        contexts = [self.lengths[row] for row in rows]
        positions = [torch.arange(start, end) for start, end in zip(starts, contexts, strict=True)]
        groups = []
        for index in range(len(self.spec.windows)):
            table = self._page_table(index)[rows]
            slots = [
                table[i, where // self.page_size].long() * self.page_size + where % self.page_size
                for i, where in enumerate(positions)
            ]
            groups.append(
                GroupInput(
                    slots_T=torch.cat(slots),
                    decode_table_BP=table[:num_decode],
                    prefill_table_SP=table[num_decode:],
                )
            )
        return ModelInput(
            token_ids_T=torch.cat(tokens),
            positions_T=torch.cat(positions),
            lengths_T=torch.cat(positions) + 1,
            limits_T=torch.cat(positions) + 1,
            last_N=torch.tensor(counts).cumsum(0) - 1,
            groups=tuple(groups),
            decode_context_lens_B=torch.tensor(contexts[:num_decode], dtype=torch.int32),
            max_context_len=max(contexts[:num_decode], default=0),
            query_starts=torch.tensor([0, *counts[num_decode:]]).cumsum(0, dtype=torch.int32),
            prefill_context_lens_S=torch.tensor(contexts[num_decode:], dtype=torch.int32),
            prefill_lengths=tuple(zip(counts, contexts, strict=True))[num_decode:],
        )

    def _page_table(self, group: int) -> Tensor:
        """64 tokens a sequence, on pages in an order of the group's own."""
        order = torch.randperm(4 * 64 // self.page_size, generator=torch.Generator().manual_seed(group))
        return order.view(4, -1).int()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@torch.inference_mode()
def check(model: PreTrainedModel, replica: Replica, prompts: list[int], steps: list[dict[int, int]]) -> None:
    """Feed each step's number of tokens a sequence; compare the logits behind the last of each."""
    torch.manual_seed(2)
    sequences = [torch.randint(0, VOCAB, (length,)) for length in prompts]
    expected = [model(ids[None]).logits[0] for ids in sequences]
    done = [0] * len(sequences)
    for counts in steps:
        work = {}
        for row, count in counts.items():
            work[row] = sequences[row][done[row] : done[row] + count]
            done[row] += count
        theirs = torch.stack([expected[row][done[row] - 1] for row in counts])
        assert relative_error(replica.step(work), theirs) < TOLERANCE
    assert done == prompts


MIXED = [{0: 21}, {0: 1, 1: 9}, {0: 1, 1: 8, 2: 5}, {0: 1, 1: 1, 2: 1}, {1: 1, 0: 1, 2: 12}, {2: 1}]


@pytest.mark.parametrize("page_size", [4, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "with biases and a tied head"])
def test_a_batch_of_chunks_and_single_tokens_gives_transformers_logits(
    bias: bool, world_size: int, page_size: int
) -> None:
    model, spec = llama(bias=bias, tied=bias)
    replica = Replica.of(model, spec, world_size, page_size)
    check(model, replica, [25, 19, 19], MIXED)


@pytest.mark.parametrize(
    "chunks", [[33], [16, 17], [4, 4, 25], [31, 1, 1]], ids=lambda chunks: "+".join(map(str, chunks))
)
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_prompt_in_any_chunks_gives_transformers_logits(world_size: int, chunks: list[int]) -> None:
    model, spec = llama(bias=False, tied=True)
    replica = Replica.of(model, spec, world_size, 4)
    check(model, replica, [33], [{0: count} for count in chunks])


@pytest.mark.parametrize("world_size", [1, 2])
def test_layers_with_and_without_a_window_keep_their_own_pages(world_size: int) -> None:
    kinds = ["full_attention", "sliding_attention"]
    config = Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=6, layer_types=kinds, tie_word_embeddings=True
    )
    model = randomised(Qwen2ForCausalLM(config))
    assert model.config.layer_types == kinds
    spec = make_spec((LayerSpec(), LayerSpec(window=6)), qkv_bias=True, tied_head=True)
    replica = Replica.of(model, spec, world_size, 4)
    check(model, replica, [25, 19, 19], MIXED)
