"""One completion, from token events to deltas and the whole."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from headway.core import errors
from headway.core.request import EngineRequest, FinishReason, Logprob, TokenEvent
from headway.core.sampling import SamplingParams
from headway.serving.failure import error_of, failure_of
from headway.serving.output import Delta, Output, collect, merge
from headway.serving.tokenizer import TextTokenizer


def byte_tokenizer() -> TextTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return TextTokenizer(backend)


BYTES = byte_tokenizer()
EOS = 256


def request(**sampling: object) -> EngineRequest:
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    return EngineRequest(request_id="a", prompt_ids=(1, 2, 3), sampling=params, seed=0, stop_token_ids=(EOS,))


def event(token: int | None, reason: FinishReason | None = None, **more: object) -> TokenEvent:
    return TokenEvent(request_id="a", token_id=token, finish_reason=reason, **more)  # type: ignore[arg-type]


def run(output: Output, text: str, reason: FinishReason = FinishReason.LENGTH) -> list[Delta]:
    ids = BYTES.encode(text)
    deltas = []
    for index, token in enumerate(ids):
        deltas.append(output.push(event(token, reason if index == len(ids) - 1 else None)))
        if deltas[-1].terminal:
            return deltas
    return deltas


def test_the_deltas_make_the_completion() -> None:
    deltas = run(Output(request(), BYTES, index=2), "né €!")
    whole = collect(deltas)[0]
    assert (whole.text, whole.token_ids, whole.index) == ("né €!", BYTES.encode("né €!"), 2)
    assert (whole.finish_reason, whole.num_prompt_tokens) == (FinishReason.LENGTH, 3)


def test_text_held_back_for_a_stop_string_comes_with_the_end() -> None:
    deltas = run(Output(request(stop=("END",)), BYTES), "the EN")
    assert [delta.text for delta in deltas] == ["t", "h", "e", " ", "", "EN"]


def test_a_stop_string_ends_the_completion_before_the_engine_does() -> None:
    output = Output(request(stop=("END",)), BYTES)
    deltas = run(output, "the END is near")
    assert collect(deltas)[0].text == "the "
    assert deltas[-1].finish_reason == output.finish_reason == FinishReason.STOP
    assert deltas[-1].num_output_tokens == 7


def test_a_stop_id_has_no_text_and_lets_out_what_was_held_back() -> None:
    output = Output(request(stop=("END",)), BYTES)
    for token in BYTES.encode("the EN"):
        output.push(event(token))
    last = output.push(event(EOS, FinishReason.STOP))
    assert (last.text, last.token_ids, last.finish_reason) == ("EN", (EOS,), FinishReason.STOP)


def test_an_end_without_a_token_is_an_end() -> None:
    output = Output(request(), None)
    assert output.push(event(5)).token_ids == (5,)
    last = output.push(event(None, FinishReason.ABORT))
    assert (last.token_ids, last.finish_reason, last.num_output_tokens) == ((), FinishReason.ABORT, 1)


@given(st.text("aEND€", max_size=12), st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=200)
def test_a_resumed_output_goes_on_where_the_first_one_was(text: str, cut: int, min_tokens: int) -> None:
    full = request(stop=("END", "aa"), min_tokens=min_tokens)
    first = Output(full, BYTES)
    ids = BYTES.encode(text)[:cut]
    before = [first.push(event(token)) for token in ids if first.finish_reason is None]
    second = Output(replace(full, output_ids=tuple(first.token_ids)), BYTES)
    assert second.finish_reason == first.finish_reason
    if first.finish_reason is None:
        rest = text.encode()[cut:].decode(errors="ignore") + "!"
        assert [d.text for d in run(second, rest)] == [d.text for d in run(first, rest)]
    else:
        assert before[-1].terminal
        assert second.end(FinishReason.STOP).text == ""


def test_logprobs_stay_beside_their_tokens_when_deltas_merge() -> None:
    output = Output(request(logprobs=0), None)
    pushed = [
        output.push(event(token, logprobs=(Logprob(token_id=token, logprob=-1.0),))) for token in (4, 5)
    ]
    merged = merge(pushed)
    assert [entry[0].token_id for entry in merged.logprobs] == [*merged.token_ids] == [4, 5]


def test_an_error_ends_the_completion_and_is_raised_by_collect() -> None:
    output = Output(request(stop=("END",)), BYTES)
    output.push(event(BYTES.encode("E")[0]))
    last = output.fail(errors.ReplicaUnavailable("gone"))
    assert last.text == "", "a resumption will decide about what is held back"
    with pytest.raises(errors.ReplicaUnavailable, match="gone"):
        collect([last])


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest("stop[1]", "a text", 5),
        errors.DuplicateRequest("x"),
        errors.UnknownRequest("x"),
        errors.Unauthenticated("x"),
        errors.Overloaded("x"),
        errors.DeadlineExceeded("x"),
        errors.Cancelled("x"),
        errors.ReplicaUnavailable("x"),
    ],
)
def test_an_error_comes_back_as_what_it_was(error: errors.HeadwayError) -> None:
    failure = failure_of(error)
    back = error_of(failure.code, failure.text)
    assert (type(back), str(back)) == (type(error), str(error))
    assert failure.retryable == back.retryable
    if isinstance(back, errors.InvalidRequest):
        assert (back.field, back.limit, back.value) == ("stop[1]", "a text", "5")


def test_what_is_not_about_a_request_is_not_told() -> None:
    for error in (KeyError("/srv/x"), errors.ModelError("/srv/x"), errors.StartError("10.0.0.1")):
        failure = failure_of(error)
        assert failure.code == "INTERNAL"
        assert str(error) not in failure.text


def test_the_front_end_and_the_client_need_neither_torch_nor_triton_nor_ray() -> None:
    code = (
        "import sys, headway.serving.server, headway.serving.client, headway.link.server, headway.cli.main\n"
        "assert not {'torch', 'triton', 'ray', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
