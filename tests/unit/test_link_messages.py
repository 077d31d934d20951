"""What goes over the link comes out as it went in."""

from dataclasses import fields, replace

from headway.core.request import EngineRequest, FinishReason, Load, Logprob, ReplicaInfo, TokenEvent
from headway.core.sampling import SamplingParams
from headway.link import messages

FULL = SamplingParams(
    n=2,
    temperature=0.0,
    top_k=3,
    top_p=0.5,
    min_p=0.25,
    repetition_penalty=1.5,
    presence_penalty=-1,
    frequency_penalty=1,
    max_tokens=9,
    min_tokens=2,
    stop=("a", "b"),
    stop_token_ids=(5, 6),
    ignore_eos=True,
    seed=0,
    logprobs=0,
)


def test_requests_survive_with_every_field_set_and_with_none() -> None:
    assert all(getattr(FULL, f.name) != f.default for f in fields(FULL))
    request = EngineRequest(
        request_id="é",
        prompt_ids=(0, 1 << 30),
        sampling=FULL,
        seed=(1 << 63) - 1,
        stop_token_ids=(7,),
        output_ids=(8, 9),
    )
    for sent in (request, replace(request, sampling=SamplingParams(), stop_token_ids=(), output_ids=())):
        assert messages.request_from_proto(messages.request_to_proto(sent)) == sent


def test_events_survive() -> None:
    event = TokenEvent(request_id="a", token_id=0, logprobs=(Logprob(token_id=3, logprob=-0.1),))
    for sent in (
        event,
        TokenEvent(request_id="a"),
        *(replace(event, finish_reason=reason) for reason in FinishReason),
        *(TokenEvent(request_id="a", num_pages_freed=number) for number in (0, 7)),
        TokenEvent(request_id="a", error="text", error_code="UNAVAILABLE", retryable=True),
    ):
        assert messages.event_from_proto(messages.event_to_proto(sent)) == sent


def test_info_and_load_survive() -> None:
    info = ReplicaInfo(
        world_size=1,
        device="cpu",
        dtype="float32",
        vocab_size=2,
        max_model_len=3,
        page_size=4,
        num_pages=5,
        pool_bytes=1 << 40,
    )
    assert messages.info_from_proto(messages.info_to_proto(info)) == info
    load = Load(num_running=1, num_waiting=2, free_pages=3, num_pages=4, step=1 << 40)
    assert messages.load_from_proto(messages.load_to_proto(load)) == load
