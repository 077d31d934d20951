"""The public service's messages: prompts and deltas, for the server and for the clients."""

from collections.abc import Mapping, Sequence
from typing import Any

from headway.core.errors import InvalidRequest
from headway.core.limits import check_length, check_token_ids
from headway.core.sampling import SamplingParams
from headway.link.messages import (
    error_to_proto,
    logprobs_from_proto,
    logprobs_to_proto,
    reason_from_proto,
    reason_to_proto,
    sampling_to_proto,
)
from headway.rpc.v1 import inference_pb2
from headway.serving.failure import Failure
from headway.serving.model import Prompt, check_prompt_kind
from headway.serving.output import Delta


def prompt_from_proto(request: inference_pb2.GenerateRequest | inference_pb2.TokenizeRequest) -> Prompt:
    """Raises InvalidRequest where there is none."""
    kind = request.WhichOneof("prompt")
    if kind == "text":
        return request.text
    if kind == "messages":
        check_length("messages", request.messages.messages)
        return [{"role": m.role, "content": m.content} for m in request.messages.messages]
    if isinstance(request, inference_pb2.GenerateRequest) and kind == "token_ids":
        return tuple(request.token_ids.token_ids)
    raise InvalidRequest("prompt", "given", None)


def prompt_to_proto(prompt: Prompt) -> dict[str, Any]:
    """The prompt's field of a request. Raises InvalidRequest for what no message can hold."""
    if isinstance(prompt, str):
        return {"text": _unicode("prompt", prompt)}
    check_prompt_kind(prompt)
    items: list[Any] = list(prompt)
    if items and isinstance(items[0], Mapping):
        messages = [_message(index, message) for index, message in enumerate(items)]
        return {"messages": inference_pb2.ChatMessages(messages=messages)}
    check_token_ids("prompt", items)
    return {"token_ids": inference_pb2.TokenIds(token_ids=items)}


def generate_request(
    prompt: Prompt,
    sampling: SamplingParams,
    *,
    request_id: str | None = None,
    resume_token_ids: tuple[int, ...] = (),
) -> inference_pb2.GenerateRequest:
    """Raises InvalidRequest."""
    check_token_ids("resume_token_ids", resume_token_ids)
    return inference_pb2.GenerateRequest(
        request_id=request_id,
        sampling=sampling_to_proto(sampling),
        resume_token_ids=resume_token_ids,
        **prompt_to_proto(prompt),
    )


def tokenize_request(prompt: Prompt) -> inference_pb2.TokenizeRequest:
    """Raises InvalidRequest, also for token ids."""
    fields = prompt_to_proto(prompt)
    if "token_ids" in fields:
        raise InvalidRequest("prompt", "a text or messages", prompt)
    return inference_pb2.TokenizeRequest(**fields)


def detokenize_request(token_ids: Sequence[int]) -> inference_pb2.DetokenizeRequest:
    """Raises InvalidRequest."""
    check_token_ids("token_ids", token_ids)
    return inference_pb2.DetokenizeRequest(token_ids=token_ids)


def delta_to_proto(delta: Delta) -> inference_pb2.GenerateResponse:
    message = inference_pb2.GenerateResponse(
        index=delta.index,
        token_ids=delta.token_ids,
        text=delta.text,
        num_prompt_tokens=delta.num_prompt_tokens,
        num_output_tokens=delta.num_output_tokens,
    )
    for entry in delta.logprobs:
        message.logprobs.add(logprobs=logprobs_to_proto(entry))
    if delta.failure is not None:
        failure = delta.failure
        message.error.CopyFrom(error_to_proto(failure.code, failure.text, failure.retryable))
    elif delta.finish_reason is not None:
        message.finish_reason = reason_to_proto(delta.finish_reason)
    return message


def delta_from_proto(message: inference_pb2.GenerateResponse) -> Delta:
    end, error = message.WhichOneof("end"), message.error
    return Delta(
        index=message.index,
        token_ids=tuple(message.token_ids),
        text=message.text,
        logprobs=tuple(logprobs_from_proto(entry.logprobs) for entry in message.logprobs),
        finish_reason=reason_from_proto(message.finish_reason) if end == "finish_reason" else None,
        failure=Failure(code=error.code, text=error.text, retryable=error.retryable)
        if end == "error"
        else None,
        num_prompt_tokens=message.num_prompt_tokens,
        num_output_tokens=message.num_output_tokens,
    )


def _message(index: int, message: object) -> inference_pb2.ChatMessage:
    fields = dict(message) if isinstance(message, Mapping) else {}
    role, content = (_unicode(f"messages[{index}].{name}", fields.get(name)) for name in ("role", "content"))
    return inference_pb2.ChatMessage(role=role, content=content)


def _unicode(field: str, text: object) -> str:
    """Raises InvalidRequest for what is no text, and for half a surrogate pair, which UTF-8 cannot hold."""
    if not isinstance(text, str):
        raise InvalidRequest(field, "a text", text)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(field, "a text in valid Unicode", text)
    return text
