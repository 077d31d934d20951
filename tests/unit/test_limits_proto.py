"""Every field that a client can set has a declared bound: found by reflection, so new ones are, too."""

from collections.abc import Iterator, Mapping
from dataclasses import fields

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from headway.core.limits import BOUNDS, Bound
from headway.core.sampling import SamplingParams
from headway.rpc.v1 import control_pb2, inference_pb2

REQUESTS = [
    inference_pb2.GenerateRequest,
    inference_pb2.TokenizeRequest,
    inference_pb2.DetokenizeRequest,
    control_pb2.AbortRequest,
]


def leaves(message: Descriptor) -> Iterator[FieldDescriptor]:
    for field in message.fields:
        if field.message_type is not None:
            yield from leaves(field.message_type)
        if field.message_type is None or field.is_repeated:
            yield field


def unbounded(message: Descriptor, bounds: Mapping[str, Bound]) -> list[str]:
    """Fields without a bound. A bool has none to declare; a repeated text needs one for its items, too."""
    needed = []
    for field in leaves(message):
        if field.type != FieldDescriptor.TYPE_BOOL:
            needed.append(field.name)
        if field.is_repeated and field.type == FieldDescriptor.TYPE_STRING:
            needed.append(f"{field.name}[]")
    return [name for name in needed if name not in bounds]


@pytest.mark.parametrize("request_type", REQUESTS)
def test_every_field_of_a_request_has_a_declared_bound(request_type: type) -> None:
    assert unbounded(request_type.DESCRIPTOR, BOUNDS) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["temperature", "stop[]", "stop_token_ids", "content", "messages", "request_id"]
)
def test_the_walk_finds_a_bound_that_is_taken_away(name: str) -> None:
    fewer = {key: bound for key, bound in BOUNDS.items() if key != name}
    assert set(unbounded(inference_pb2.GenerateRequest.DESCRIPTOR, fewer)) == {name}


def test_the_message_mirrors_the_sampling_parameters() -> None:
    message = inference_pb2.SamplingParams.DESCRIPTOR
    assert [field.name for field in message.fields] == [field.name for field in fields(SamplingParams)]
    for field in fields(SamplingParams):
        zero_is_default = field.default in (0, False, ()) and field.default is not None
        assert message.fields_by_name[field.name].has_presence == (not zero_is_default), field.name
