"""Core types as protobuf messages and back, for both ends of the link and for the public services."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from headway.core.request import EngineRequest, FinishReason, Load, Logprob, ReplicaInfo, TokenEvent
from headway.core.sampling import SamplingParams
from headway.rpc.v1 import control_pb2, inference_pb2, replica_pb2

_SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingParams))
_INFO_FIELDS = tuple(field.name for field in fields(ReplicaInfo))
_LOAD_FIELDS = tuple(field.name for field in fields(Load))
_TO_REASON = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: inference_pb2.FINISH_REASON_ABORT,
}
_FROM_REASON = {number: reason for reason, number in _TO_REASON.items()}


def reason_to_proto(reason: FinishReason) -> inference_pb2.FinishReason:
    return _TO_REASON[reason]


def reason_from_proto(number: inference_pb2.FinishReason) -> FinishReason:
    return _FROM_REASON[number]


def sampling_to_proto(sampling: SamplingParams) -> inference_pb2.SamplingParams:
    values = {name: getattr(sampling, name) for name in _SAMPLING_FIELDS}
    given = {name: value for name, value in values.items() if value is not None}
    return inference_pb2.SamplingParams(**given)


def sampling_from_proto(message: inference_pb2.SamplingParams) -> SamplingParams:
    """Absent fields take the defaults. Raises InvalidRequest for values out of bounds."""
    has_presence = {field.name: field.has_presence for field in message.DESCRIPTOR.fields}
    values: dict[str, Any] = {
        name: getattr(message, name)
        for name in _SAMPLING_FIELDS
        if not has_presence[name] or message.HasField(name)
    }
    for name in ("stop", "stop_token_ids"):
        values[name] = tuple(values[name])
    return SamplingParams(**values)


def logprobs_to_proto(logprobs: Iterable[Logprob]) -> list[inference_pb2.Logprob]:
    return [inference_pb2.Logprob(token_id=entry.token_id, logprob=entry.logprob) for entry in logprobs]


def logprobs_from_proto(messages: Iterable[inference_pb2.Logprob]) -> tuple[Logprob, ...]:
    return tuple(Logprob(token_id=entry.token_id, logprob=entry.logprob) for entry in messages)


def request_to_proto(request: EngineRequest) -> replica_pb2.EngineRequest:
    return replica_pb2.EngineRequest(
        request_id=request.request_id,
        prompt_ids=request.prompt_ids,
        sampling=sampling_to_proto(request.sampling),
        seed=request.seed,
        stop_token_ids=request.stop_token_ids,
        output_ids=request.output_ids,
    )


def request_from_proto(message: replica_pb2.EngineRequest) -> EngineRequest:
    return EngineRequest(
        request_id=message.request_id,
        prompt_ids=tuple(message.prompt_ids),
        sampling=sampling_from_proto(message.sampling),
        seed=message.seed,
        stop_token_ids=tuple(message.stop_token_ids),
        output_ids=tuple(message.output_ids),
    )


def event_to_proto(event: TokenEvent) -> replica_pb2.TokenEvent:
    message = replica_pb2.TokenEvent(request_id=event.request_id)
    if event.token_id is not None:
        message.token_id = event.token_id
    if event.logprobs:
        message.logprobs.extend(logprobs_to_proto(event.logprobs))
    if event.finish_reason is not None:
        message.finish_reason = _TO_REASON[event.finish_reason]
    if event.num_pages_freed is not None:
        message.num_pages_freed = event.num_pages_freed
    if event.error is not None:
        message.error.CopyFrom(error_to_proto(event.error_code or "INTERNAL", event.error, event.retryable))
    return message


def event_from_proto(message: replica_pb2.TokenEvent) -> TokenEvent:
    failed = message.HasField("error")
    return TokenEvent(
        request_id=message.request_id,
        token_id=message.token_id if message.HasField("token_id") else None,
        logprobs=logprobs_from_proto(message.logprobs) if message.logprobs else (),
        finish_reason=_FROM_REASON.get(message.finish_reason),
        error=message.error.text if failed else None,
        error_code=message.error.code if failed else None,
        retryable=message.error.retryable if failed else False,
        num_pages_freed=message.num_pages_freed if message.HasField("num_pages_freed") else None,
    )


def error_to_proto(code: str, text: str, retryable: bool) -> inference_pb2.Error:
    return inference_pb2.Error(code=code, text=text, retryable=retryable)


def info_to_proto(info: ReplicaInfo) -> control_pb2.ReplicaInfo:
    return control_pb2.ReplicaInfo(**{name: getattr(info, name) for name in _INFO_FIELDS})


def info_from_proto(message: control_pb2.ReplicaInfo) -> ReplicaInfo:
    return ReplicaInfo(**{name: getattr(message, name) for name in _INFO_FIELDS})


def load_to_proto(load: Load) -> control_pb2.Load:
    return control_pb2.Load(**{name: getattr(load, name) for name in _LOAD_FIELDS})


def load_from_proto(message: control_pb2.Load) -> Load:
    return Load(**{name: getattr(message, name) for name in _LOAD_FIELDS})


def idle_load(info: ReplicaInfo) -> Load:
    """What is assumed of a replica before its first step."""
    return Load(num_running=0, num_waiting=0, free_pages=info.num_pages, num_pages=info.num_pages, step=0)
