"""Every family against transformers: greedy tokens through the engine, logits through the decoder.

A family is a row of CASES: a tiny model of odd shapes with random weights, made by transformers. Facts about
transformers that the oracle relies on:
- Attention is eager, so that soft caps and sinks count, and masks are explicit.
- Falcon with ALiBi is the exception: its eager path adds the bias twice, its SDPA path once, as the model was
  trained. Both round it to bfloat16, which is exact for the slopes and positions of up to 8 heads and 256
  tokens.
- Experts are computed one after another: its grouped product refuses odd sizes.
- Each prompt has a model of its own: dynamic rotary embeddings remember the longest sequence so far.
- A sliding window of n lets a query see n positions, its own included.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from headway import LLM
from headway.core.config import EngineConfig
from headway.core.request import EngineRequest
from headway.core.sampling import SamplingParams
from headway.engine.build import solo_engine, thread_engine
from headway.engine.engine import Engine
from headway.model.batch import GroupInput, ModelInput
from headway.model.checkpoint import read_checkpoint
from headway.model.collectives import SoloCollectives, ThreadCollectives
from headway.model.decoder import Decoder
from headway.model.folder import read_spec
from headway.model.loader import load
from headway.model.weights import shard_plan

NUM_TOKENS = 48
TOLERANCE = 2e-5


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


@dataclass(frozen=True)
class Oracle:
    """A checkpoint and what transformers makes of it, in float32."""

    folder: Path
    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    logits: tuple[Tensor, ...]  # of every position of the prompt


Get = Callable[[str], Oracle]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """The oracle of a case, made once."""
    made: dict[str, Oracle] = {}

    def get(name: str) -> Oracle:
        if name not in made:
            made[name] = make_oracle(CASES[name], tmp_path_factory.mktemp("family"))
        return made[name]

    return get


@torch.inference_mode()
def make_oracle(case: Case, folder: Path) -> Oracle:
    model = make_model(case)
    model.save_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    vocab_size = model.config.get_text_config().vocab_size
    prompts = [torch.randint(vocab_size, (1, length), generator=generator) for length in case.prompt_lengths]
    tokens, logits = [], []
    for prompt in prompts:
        fresh = copy.deepcopy(model)
        logits.append(fresh(prompt, attention_mask=torch.ones_like(prompt)).logits[0])
        ids = fresh.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens.append(tuple(ids[0, prompt.shape[1] :].tolist()))
    assert len(set().union(*tokens)) > 9, f"tokens that repeat show little; choose another seed: {tokens}"
    ids = tuple(tuple(prompt[0].tolist()) for prompt in prompts)
    return Oracle(folder=folder, prompts=ids, tokens=tuple(tokens), logits=tuple(logits))


def make_model(case: Case) -> PreTrainedModel:
    """Weights large enough that attention is far from uniform, norms and biases far from trivial."""
    config = AutoConfig.for_model(
        case.model_type, **copy.deepcopy(SIZES | case.config), eos_token_id=None, pad_token_id=None
    )
    torch.manual_seed(case.seed)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=case.attention, experts_implementation="eager"
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=1.5 * weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.2)
            if weight.dim() == 1 and name.endswith(".weight") and "gemma" not in case.model_type:
                weight.add_(1)
        if model.config.tie_word_embeddings:  # or the likeliest token would be the last one again
            model.get_input_embeddings().weight.mul_(0.2)
    return model.float().eval()


def generate(engine: Engine, prompts: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """Greedy tokens of all prompts in one batch."""
    outputs: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    for index, prompt in enumerate(prompts):
        sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
        engine.submit(EngineRequest(request_id=str(index), prompt_ids=prompt, sampling=sampling, seed=0))
    while engine.has_work:
        for event in engine.step():
            assert event.error is None, event.error
            if event.token_id is not None:
                outputs[event.request_id].append(event.token_id)
    return [tuple(tokens) for tokens in outputs.values()]


def check_tokens(oracle: Oracle, *, tp: int, page_size: int, max_num_tokens: int = 11) -> None:
    """max_num_tokens: so few a step that prompts are computed in chunks beside sequences that decode."""
    config = EngineConfig(
        tp=tp,
        device="cpu",
        dtype="float32",
        page_size=page_size,
        num_pages=3 * 96 // page_size,
        max_num_tokens=max_num_tokens,
        max_num_rows=4,
    )
    engine = solo_engine(oracle.folder, config) if tp == 1 else thread_engine(oracle.folder, config)
    try:
        assert generate(engine, oracle.prompts) == list(oracle.tokens)
    finally:
        engine.close()


@pytest.mark.parametrize("tp", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_equal_those_of_transformers(name: str, tp: int, oracle: Get) -> None:
    check_tokens(oracle(name), tp=tp, page_size=4)


@pytest.mark.parametrize("name", ["mistral", "starcoder2"])
def test_a_prompt_larger_than_the_pool_runs_where_every_layer_has_a_window(name: str, oracle: Get) -> None:
    one = oracle(name)
    longest = max(range(len(one.prompts)), key=lambda index: len(one.prompts[index]))
    assert len(one.prompts[longest]) > 5 * 4
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    with LLM(str(one.folder), device="cpu", dtype="float32", num_pages=5, page_size=4) as llm:
        (completion,) = llm.generate([one.prompts[longest]], params)
    assert completion.token_ids == one.tokens[longest]


@pytest.mark.full
@pytest.mark.parametrize("max_num_tokens", [5, 64])
@pytest.mark.parametrize("page_size", [4, 16])
@pytest.mark.parametrize("tp", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_equal_those_of_transformers_in_every_way(
    name: str, tp: int, page_size: int, max_num_tokens: int, oracle: Get
) -> None:
    check_tokens(oracle(name), tp=tp, page_size=page_size, max_num_tokens=max_num_tokens)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_logits_of_a_prompt_are_those_of_transformers(name: str, world_size: int, oracle: Get) -> None:
    one = oracle(name)
    longest = max(range(len(one.prompts)), key=lambda index: len(one.prompts[index]))
    ours = prompt_logits(one.folder, torch.tensor(one.prompts[longest]), world_size)
    theirs = one.logits[longest]
    assert float((ours - theirs).norm() / theirs.norm()) < TOLERANCE


def prompt_logits(folder: Path, ids: Tensor, world_size: int) -> Tensor:
    """Of every position of one prompt, computed at once by decoders in threads."""
    spec = read_spec(folder)
    plan = shard_plan(spec, world_size)
    group = [SoloCollectives()] if world_size == 1 else ThreadCollectives.group(world_size, 30)
    pages, num_tokens = 8, len(ids)
    page_size = -(-num_tokens // pages)
    table, none = torch.arange(pages, dtype=torch.int32)[None], torch.empty(0, dtype=torch.int32)
    place = GroupInput(slots_T=torch.arange(num_tokens), decode_table_BP=table[:0], prefill_table_SP=table)
    batch = ModelInput(
        token_ids_T=ids,
        positions_T=torch.arange(num_tokens),
        lengths_T=torch.full((num_tokens,), num_tokens),
        limits_T=torch.full((num_tokens,), num_tokens),
        last_N=torch.arange(num_tokens),
        groups=(place,) * len(spec.windows),
        decode_context_lens_B=none,
        max_context_len=0,
        query_starts=torch.tensor([0, num_tokens], dtype=torch.int32),
        prefill_context_lens_S=torch.tensor([num_tokens], dtype=torch.int32),
        prefill_lengths=((num_tokens, num_tokens),),
    )

    def run(rank: int) -> Tensor:
        part = plan.rank(rank)
        params = load(folder, plan, rank, device="cpu", dtype=torch.float32)
        decoder = Decoder(spec, part.heads, params, part.vocab, group[rank])
        shape = (pages, part.heads.num_kv_heads, page_size, spec.head_dim)
        pools = [[torch.full(shape, torch.nan) for _ in spec.layers] for _ in "kv"]
        try:
            logits = decoder.forward(batch, *pools)
            return group[rank].gather_vocab(logits, [len(vocab) for vocab in plan.vocab])
        except BaseException:
            group[rank].close()
            raise

    with ThreadPoolExecutor(world_size) as threads:
        first, *others = threads.map(run, range(world_size))
    assert all(torch.equal(other, first) for other in others)
    return first


@pytest.mark.parametrize("name", CASES)
def test_every_rank_reads_and_holds_the_bytes_that_the_plan_says(name: str, oracle: Get) -> None:
    folder = oracle(name).folder
    plan = shard_plan(read_spec(folder), 3)
    checkpoint = read_checkpoint(folder)
    for rank in range(3):
        steps: list[tuple[int, int]] = []
        tensors = load(
            folder,
            plan,
            rank,
            device="cpu",
            dtype=torch.float32,
            progress=lambda done, total, steps=steps: steps.append((done, total)),  # type: ignore[misc]
        )
        planned = plan.rank(rank).source_bytes(checkpoint)
        assert steps[-1] == (planned, planned)
        assert sum(tensor.nbytes for tensor in tensors.values()) == plan.rank(rank).target_bytes(4)
