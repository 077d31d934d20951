"""`headway.LLM` with one rank, in this process."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer

import headway.engine.build
from checkpoints import CONTEXT, Oracle
from headway import LLM, SamplingParams
from headway.core.errors import ConfigError, HeadwayError, InvalidRequest, ModelError, ReplicaUnavailable
from headway.core.request import FinishReason
from headway.core.step import StepPlan
from headway.engine.engine import Engine
from headway.model.folder import resolve
from headway.worker.rank import PendingStep, Rank

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
NUM_PAGES = 64
LINE = "To be, or not to be, "


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Engine]]:
    """The engines that were made: the only way to see their pages, which an LLM keeps to itself."""
    made: list[Engine] = []
    solo_engine = headway.engine.build.solo_engine

    def recorded(*args: object) -> Engine:
        made.append(solo_engine(*args))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headway.engine.build, "solo_engine", recorded)
        yield made


@pytest.fixture(scope="module")
def demo(engines: list[Engine]) -> Iterator[tuple[LLM, Engine]]:
    with LLM("demo", device="cpu", num_pages=NUM_PAGES, page_size=4, max_num_rows=8) as llm:
        yield llm, engines[-1]


@pytest.fixture
def llm(demo: tuple[LLM, Engine]) -> Iterator[LLM]:
    """The demo model; no test may leave a request or a page behind."""
    llm, engine = demo
    yield llm
    assert is_idle(engine)


def is_idle(engine: Engine) -> bool:
    engine.check()
    return not engine.has_work and engine.load.free_pages == engine.load.num_pages


def encode(text: str) -> list[int]:
    return Tokenizer.from_file(str(resolve("demo") / "tokenizer.json")).encode(text).ids


# Prompts


def test_a_text_and_its_token_ids_give_the_same_completion(llm: LLM) -> None:
    ids = encode(LINE)
    (completion,) = llm.generate(LINE, GREEDY)
    assert completion.num_prompt_tokens == len(ids)
    assert len(completion.token_ids) == 12
    assert completion.text
    assert completion.finish_reason is FinishReason.LENGTH
    assert llm.generate(ids, GREEDY) == llm.generate(tuple(ids), GREEDY) == [completion]


def test_a_batch_gives_each_prompt_what_it_gets_alone_in_the_prompts_order(llm: LLM) -> None:
    prompts = [LINE, encode("My lord,"), "O", "What say you, good my lord of Gloucester?", LINE]
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert llm.generate(prompts, GREEDY) == alone


def test_chat_messages_are_one_prompt(llm: LLM) -> None:
    (completion,) = llm.generate([{"role": "user", "content": "Who is there?"}], GREEDY)
    (same,) = llm.generate("USER:\nWho is there?\n\nHEADWAY:\n", GREEDY)
    assert completion == same


def test_no_prompts_give_no_completions(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


def test_n_completions_of_a_prompt_come_one_after_the_other_each_with_its_own_seed(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=12, ignore_eos=True)
    completions = llm.generate([LINE, "O"], params)
    assert [completion.index for completion in completions] == [0, 1, 2, 0, 1, 2]
    assert len({completion.token_ids for completion in completions[:3]}) == 3
    (second,) = llm.generate(LINE, replace(params, n=1, seed=6))
    assert replace(second, index=1) == completions[1]


def test_without_a_seed_each_call_draws_one(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    assert llm.generate(LINE, params) != llm.generate(LINE, params)


def test_logprobs_are_those_that_were_asked_for(llm: LLM) -> None:
    (completion,) = llm.generate(LINE, replace(GREEDY, logprobs=2))
    assert [len(entries) for entries in completion.logprobs] == [3] * 12
    assert [entries[0].token_id for entries in completion.logprobs] == list(completion.token_ids)
    assert all(chosen == likeliest for chosen, likeliest, _ in completion.logprobs)


def test_the_model_in_a_folder_without_tokenizer_takes_ids_and_gives_ids(gqa: Oracle) -> None:
    with LLM(str(gqa.folder), device="cpu", num_pages=16) as llm:
        (completion,) = llm.generate([5, 6, 7], GREEDY)
        assert (completion.token_ids, completion.text) == (gqa.greedy((5, 6, 7), 12), "")
        with pytest.raises(InvalidRequest, match="has no tokenizer"):
            llm.generate(LINE, GREEDY)


# Ends


def test_a_stop_string_ends_the_output_before_it_and_at_once(llm: LLM) -> None:
    (whole,) = llm.generate(LINE, replace(GREEDY, max_tokens=40))
    middle = len(whole.text) // 3
    stop = whole.text[middle : middle + 3]
    (stopped,) = llm.generate(LINE, replace(GREEDY, max_tokens=1000, stop=(stop,)))
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]
    assert len(stopped.token_ids) < 40


def test_a_stop_string_of_one_prompt_leaves_the_others_alone(llm: LLM) -> None:
    prompts = [LINE, "O", "My lord,"]
    whole = llm.generate(prompts, GREEDY)
    stop = whole[0].text[5:8]
    stopped = llm.generate(prompts, replace(GREEDY, stop=(stop,)))
    assert [completion.text for completion in stopped] == [
        completion.text.partition(stop)[0] for completion in whole
    ]


def test_a_stop_id_ends_the_output_with_itself(llm: LLM) -> None:
    (whole,) = llm.generate(LINE, GREEDY)
    stop = whole.token_ids[6]
    (stopped,) = llm.generate(LINE, replace(GREEDY, stop_token_ids=(stop,)))
    assert stopped.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert stopped.finish_reason is FinishReason.STOP


def test_a_stream_gives_the_completions_text_in_pieces(llm: LLM) -> None:
    pieces = list(llm.stream(LINE, GREEDY))
    (whole,) = llm.generate(LINE, GREEDY)
    assert len(pieces) > 3
    assert "".join(pieces) == whole.text


def test_a_stream_is_of_one_completion(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="n must be 1 for a stream, got 2"):
        next(llm.stream(LINE, replace(GREEDY, n=2)))


def test_a_stream_that_is_left_early_ends_its_generation(demo: tuple[LLM, Engine]) -> None:
    llm, engine = demo
    stream = llm.stream(LINE, replace(GREEDY, max_tokens=1000))
    next(stream)
    assert engine.load.num_running == 1
    stream.close()
    assert is_idle(engine)


def test_streams_may_be_read_in_turn_and_other_prompts_completed_in_between(llm: LLM) -> None:
    prompts = [LINE, "O", "My lord,"]
    whole = [completion.text for completion in llm.generate(prompts, GREEDY)]
    first, second = llm.stream(prompts[0], GREEDY), llm.stream(prompts[1], GREEDY)
    pieces = [[next(first)], [next(second)]]
    assert llm.generate(prompts[2], GREEDY)[0].text == whole[2]
    pieces[1] += second
    pieces[0] += first
    assert ["".join(its) for its in pieces] == whole[:2]


# What is refused


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'pagesize'"):
        LLM("demo", pagesize=4)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"tp": 0}, "tp must be an integer from 1 to 1024, got 0"),
        ({"tp": 1.5}, "tp must be an integer from 1 to 1024, got 1.5"),
        ({"memory_fraction": "all"}, "memory_fraction must be from 0.01 to 1, got 'all'"),
        ({"page_size": -1}, "page_size must be an integer from 1 to 1024, got -1"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32, float16, bfloat16, got 'int8'"),
        ({"max_model_len": 2000}, "max_model_len must be at most 1024"),
    ],
)
def test_a_setting_out_of_its_bounds_is_named_with_limit_and_value(
    settings: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        LLM("demo", device="cpu", **settings)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ModelError, match="nowhere"):
        LLM("nowhere")


@pytest.mark.parametrize(
    ("prompt", "field", "value"),
    [
        ([1] * 256, r"prompts\[1\]", 256),
        ([1, 2000], r"prompts\[1\]\[1\]", 2000),
        ([-1], r"prompts\[1\]\[0\]", -1),
        ("", r"prompts\[1\]\.text", 0),
        ([{"role": "x" * 65, "content": ""}], r"prompts\[1\]\.messages\[0\]\.role", 65),
    ],
    ids=["larger than the pool", "outside the vocabulary", "negative", "no text", "a long role"],
)
def test_a_prompt_that_cannot_run_is_refused_before_any_other_starts(
    demo: tuple[LLM, Engine], prompt: list[int] | str, field: str, value: int
) -> None:
    llm, engine = demo
    step = engine.load.step
    with pytest.raises(InvalidRequest, match=rf"^{field} must be .*, got {value}$"):
        llm.generate([LINE, prompt], GREEDY)
    assert is_idle(engine)
    assert engine.load.step == step


def test_what_is_wrong_with_the_only_prompt_or_with_all_is_not_said_of_one_of_several(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt\[1\] must be .*, got 2000$"):
        llm.generate([1, 2000], GREEDY)
    with pytest.raises(InvalidRequest, match=r"^stop_token_ids\[0\] must be .*, got 2000$"):
        llm.generate([LINE, LINE], replace(GREEDY, stop_token_ids=(2000,)))


def test_a_prompt_longer_than_the_context_is_refused_with_limit_and_value(gqa: Oracle) -> None:
    with LLM(str(gqa.folder), device="cpu", num_pages=100) as llm:
        with pytest.raises(
            InvalidRequest, match=rf"prompt must be 1 to {CONTEXT - 1} tokens .*, got {CONTEXT}"
        ):
            llm.generate([1] * CONTEXT, GREEDY)
        (longest,) = llm.generate([1] * (CONTEXT - 1), GREEDY)
        assert (len(longest.token_ids), longest.finish_reason) == (1, FinishReason.LENGTH)


def test_a_failed_step_raises_that_the_replica_is_gone_and_so_does_every_later_call(
    gqa: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Rank.launch

    def faulty(rank: Rank, plan: StepPlan) -> PendingStep:
        if plan.step == 3:
            raise RuntimeError("secret")
        return launch(rank, plan)

    monkeypatch.setattr(Rank, "launch", faulty)
    with LLM(str(gqa.folder), device="cpu", num_pages=16) as llm:
        for _ in range(2):
            with pytest.raises(ReplicaUnavailable, match="step failed") as caught:
                llm.generate([[5, 6, 7], [8, 9]], GREEDY)
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "field", "value"),
    [
        (None, "prompt", "None"),
        (7, "prompt", "7"),
        ([1.5], r"prompts\[0\]", "1.5"),
        (b"ab", "prompt", "b'ab'"),
        (["O", None], r"prompts\[1\]", "None"),
        ({"role": "x"}, "prompt", "{.*}"),
    ],
)
def test_what_is_no_prompt_is_refused_as_such(llm: LLM, prompts: Any, field: str, value: str) -> None:
    limit = "a text, token ids or chat messages"
    with pytest.raises(InvalidRequest, match=f"^{field} must be {limit}, got {value}$"):
        llm.generate(prompts, GREEDY)
    if not isinstance(prompts, list):
        with pytest.raises(InvalidRequest, match=f"^prompt must be {limit}, got {value}$"):
            next(llm.stream(prompts, GREEDY))


# The end


def test_closing_gives_weights_and_pool_back(gqa: Oracle, engines: list[Engine]) -> None:
    llm = LLM(str(gqa.folder), device="cpu", num_pages=16)
    llm.generate([5, 6, 7], GREEDY)
    rank = engines.pop()._ranks._rank  # type: ignore[attr-defined]
    decoder = rank.decoder
    held = list(
        map(weakref.ref, (rank.pool.k[0], rank.pool.v[0], decoder.embed_VH, decoder.layers[0].attention._qkv))
    )
    del rank, decoder
    gc.collect()  # what is found below is what closing frees by itself
    assert all(ref() is not None for ref in held)
    llm.close()
    assert [ref for ref in held if ref() is not None] == []


def test_a_closed_model_says_so_and_closing_twice_is_safe(gqa: Oracle) -> None:
    llm = LLM(str(gqa.folder), device="cpu", num_pages=16)
    stream = llm._run([llm._sequences([5, 6, 7], GREEDY)])
    next(stream)
    llm.close()
    llm.close()
    for use in (lambda: llm.generate([5], GREEDY), lambda: llm.info, lambda: list(stream)):
        with pytest.raises(HeadwayError, match="is closed; make a new one"):
            use()
