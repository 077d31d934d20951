"""How a handler answers with an error: before a request is accepted, and for calls that only look."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc

from headway.serving.failure import failure_of

Self = TypeVar("Self")
Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]


async def refuse(context: Context, error: BaseException) -> NoReturn:
    """End the call with the status of `error`; one line of text, no addresses, paths or tracebacks."""
    failure = failure_of(error)
    await context.abort(grpc.StatusCode[failure.code], failure.text)


def refusing(
    handler: Callable[[Self, Request, Context], Awaitable[Response]],
) -> Callable[[Self, Request, Context], Awaitable[Response]]:
    """A unary handler that may raise: the error becomes the status. Cancellation passes through."""

    @wraps(handler)
    async def answer(self: Self, request: Request, context: Context) -> Response:
        try:
            return await handler(self, request, context)
        except (asyncio.CancelledError, grpc.aio.BaseError):
            raise
        except Exception as error:
            await refuse(context, error)

    return answer
