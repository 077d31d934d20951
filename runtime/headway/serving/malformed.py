"""Bytes that are no message are the sender's mistake; gRPC alone would answer INTERNAL."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from headway.core.errors import InvalidRequest
from headway.serving.auth import Handler
from headway.serving.status import Context, refuse


class MessageInterceptor(grpc.aio.ServerInterceptor):
    """Refuses a malformed request with INVALID_ARGUMENT, whatever the service."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler  # type: ignore[no-any-return]
        make = (
            grpc.unary_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(
            _checked(handler.unary_stream or handler.unary_unary),
            _lenient(handler.request_deserializer),
            handler.response_serializer,
        )


def _lenient(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return error

    return parse


def _checked(handle: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
    async def answer(request: Any, context: Context) -> Any:
        if isinstance(request, DecodeError):
            await refuse(context, InvalidRequest("request", "a valid message", "other bytes"))
        return await handle(request, context)

    return answer
