"""Every family against transformers: greedy tokens through the engine, logits through the decoder."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from family_cases import CASES
from family_oracle import NUM_TOKENS, Oracle, make_oracle
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

TOLERANCE = 2e-5
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
