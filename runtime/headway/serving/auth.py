"""With a token set, every RPC but health needs it; whatever services are added later are covered, too."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from headway.core.errors import Unauthenticated
from headway.link.channel import authorised
from headway.serving.status import Context, refuse

_OPEN = "/grpc.health.v1.Health/"  # probes of an orchestrator carry no token

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Expects `authorization: Bearer TOKEN` in the metadata."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        if handler_call_details.method.startswith(_OPEN):
            return await continuation(handler_call_details)
        if authorised(handler_call_details.invocation_metadata, self._token):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(_deny)  # it fits every kind: it reads nothing


async def _deny(requests: Any, context: Context) -> None:
    await refuse(context, Unauthenticated("the token is missing or wrong (authorization: Bearer TOKEN)"))
