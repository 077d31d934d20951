"""Every class of bad input is refused, with field, limit and value, before it is accepted."""

from typing import Any

import grpc
import pytest

from fake_engine import FakeEngine, served
from headway.core import errors
from headway.core.sampling import SamplingParams
from headway.rpc.v1 import inference_pb2, inference_pb2_grpc
from headway.serving.client import Client
from headway.serving.model import ServedModel

S, R = inference_pb2.SamplingParams, inference_pb2.GenerateRequest


IDS = inference_pb2.TokenIds


BAD = {
    "prompt must be given": R(),
    "text must be 1 to 4194304 characters, got 0": R(text=""),
    "token_ids must be 1 to 1048576 items, got 0": R(token_ids=IDS()),
    "messages must be 1 to 1024 items, got 0": R(messages=inference_pb2.ChatMessages()),
    r"messages\[0\].role must be": R(
        messages=inference_pb2.ChatMessages(messages=[inference_pb2.ChatMessage(content="x")])
    ),
    r"prompt must be 1 to 63 tokens .* got 64": R(token_ids=IDS(token_ids=[1] * 64)),
    r"prompt\[1\] must be an integer from 0 to 256 .* got 257": R(token_ids=IDS(token_ids=[1, 257])),
    r"prompt\[0\] must be .* got -1": R(token_ids=IDS(token_ids=[-1])),
    r"prompt\[0\] must be .* got 4294967301": R(token_ids=IDS(token_ids=[(1 << 32) + 5])),
    "request_id must be 1 to 128 characters, got 0": R(text="x", request_id=""),
    "request_id .* got 129": R(text="x", request_id="x" * 129),
    "temperature .* got nan": R(text="x", sampling=S(temperature=float("nan"))),
    "temperature .* got -1": R(text="x", sampling=S(temperature=-1)),
    "top_p .* got 0.0": R(text="x", sampling=S(top_p=0)),
    "min_p .* got inf": R(text="x", sampling=S(min_p=float("inf"))),
    "n must .* got 0": R(text="x", sampling=S(n=0)),
    "max_tokens .* got 0": R(text="x", sampling=S(max_tokens=0)),
    "max_tokens .* got 9223372036854775807": R(text="x", sampling=S(max_tokens=(1 << 63) - 1)),
    "seed .* got -9223372036854775808": R(text="x", sampling=S(seed=-1 << 63)),
    "logprobs .* got 21": R(text="x", sampling=S(logprobs=21)),
    "min_tokens must be at most max_tokens": R(text="x", sampling=S(max_tokens=2, min_tokens=3)),
    "stop must .* got 17": R(text="x", sampling=S(stop=["a"] * 17)),
    r"stop\[0\] must": R(text="x", sampling=S(stop=[""])),
    "stop_token_ids must .* got 65": R(text="x", sampling=S(stop_token_ids=[1] * 65)),
    r"stop_token_ids\[0\] must .* got 999": R(text="x", sampling=S(stop_token_ids=[999])),
    r"resume_token_ids\[0\] must": R(text="x", resume_token_ids=[-5]),
    "resume_token_ids must be empty where n is 2": R(text="x", sampling=S(n=2), resume_token_ids=[5]),
    r"resume_token_ids must be at most max_tokens \(1\) long": R(
        text="x", sampling=S(max_tokens=1), resume_token_ids=[5, 5]
    ),
}


def test_bad_requests_are_refused_with_field_limit_and_value() -> None:
    with served(FakeEngine()) as address, grpc.insecure_channel(address) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        for message, request in BAD.items():
            with pytest.raises(grpc.RpcError, match=message) as caught:
                list(stub.Generate(request))
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, message  # type: ignore[attr-defined]
        with Client(address) as client:  # and the largest that fits finishes
            answer = client.generate_all([1] * 63, SamplingParams(max_tokens=1))
            assert answer[0].num_prompt_tokens == 63


def test_bytes_that_are_no_message_are_refused_as_such() -> None:
    with served(FakeEngine()) as address, grpc.insecure_channel(address) as channel:
        for method in ("InferenceService/Generate", "InferenceService/Tokenize", "ControlService/Abort"):
            call: Any = channel.unary_stream(f"/headway.rpc.v1.{method}")(b"\xff\xff\xff")
            with pytest.raises(grpc.RpcError, match="request must be a valid message"):
                list(call)
            assert call.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_model_without_tokenizer_takes_token_ids_only() -> None:
    with served(FakeEngine(), model=ServedModel(name="bare")) as address, Client(address) as client:
        answer = client.generate_all([1, 2], SamplingParams(max_tokens=2, seed=0))[0]
        assert (len(answer.token_ids), answer.text) == (2, "")
        for call in (
            lambda: client.generate("x"),
            lambda: client.tokenize("x"),
            lambda: client.detokenize([1]),
        ):
            with pytest.raises(errors.InvalidRequest, match="model bare has no tokenizer"):
                call()
        with pytest.raises(errors.InvalidRequest, match="model bare has no chat template"):
            client.generate([{"role": "user", "content": "x"}])
        with pytest.raises(errors.InvalidRequest, match="stop must be empty"):
            client.generate([1], SamplingParams(stop=("x",)))


def test_a_client_does_not_speak_of_a_vocabulary_that_it_does_not_know() -> None:
    limit = "must be an integer from 0 to 2147483647, got -1$"
    with Client("127.0.0.1:1") as client:  # nobody is asked
        with pytest.raises(errors.InvalidRequest, match=rf"^prompt\[0\] {limit}"):
            client.generate([-1])
        with pytest.raises(errors.InvalidRequest, match=rf"^resume_token_ids\[1\] {limit}"):
            client.generate("x", resume_token_ids=[5, -1])
        with pytest.raises(errors.InvalidRequest, match=rf"^token_ids\[0\] {limit}"):
            client.detokenize([-1])
