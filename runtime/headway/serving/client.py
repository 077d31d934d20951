"""Clients of a Headway server, for programs with and without asyncio. They need no torch."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from headway.core.errors import HeadwayError, StartError
from headway.core.limits import check_number
from headway.core.request import Completion
from headway.core.sampling import SamplingParams
from headway.link.channel import channel_credentials, client_options, token_metadata
from headway.rpc.v1 import control_pb2 as control
from headway.rpc.v1 import control_pb2_grpc, inference_pb2_grpc
from headway.rpc.v1 import inference_pb2 as inference
from headway.serving.failure import Failure, error_of
from headway.serving.messages import delta_from_proto, detokenize_request, generate_request, tokenize_request
from headway.serving.model import Prompt
from headway.serving.output import Delta, collect


class Client:
    """Talks to the server at `target` (HOST:PORT).

    token: what the server was started with. timeout_s: of each call, unless the call has its own; None
    waits for ever. tls_ca: PEM file of the authority that signed the server's certificate; plain text
    without. Every call raises an error of `headway.core.errors` by its status: InvalidRequest, Overloaded...
    """

    def __init__(
        self,
        target: str,
        token: str | None = None,
        *,
        timeout_s: float | None = None,
        tls_ca: Path | None = None,
    ) -> None:
        self._calls = _Calls(target, token, timeout_s)
        credentials = _credentials(tls_ca)
        if credentials:
            self._channel = grpc.secure_channel(target, credentials, options=client_options(target))
        else:
            self._channel = grpc.insecure_channel(target, options=client_options(target))
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._control: Any = control_pb2_grpc.ControlServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> Completion | list[Completion]:
        """The completion of a text, of token ids or of chat messages; a list of them where n > 1.

        options: those of `stream`.
        """
        completions = self.generate_all(prompt, params, **options)
        return completions if params is not None and params.n > 1 else completions[0]

    def generate_all(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> list[Completion]:
        """`generate`, with a list for n = 1, too."""
        return _answered(collect(self.stream(prompt, params, **options)))

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        resume_token_ids: Sequence[int] = (),
        timeout_s: float | None = None,
    ) -> Iterator[Delta]:
        """What is new, as it comes; each completion's last delta says why it ended, or how it failed.

        The error of a completion that failed is raised behind the last delta of all.

        request_id: for `abort`. resume_token_ids: tokens that an earlier call with the same seed gave out
        before it broke off. timeout_s: of the whole call. Closing the iterator cancels the request.
        """
        request = _generate(prompt, params, request_id, resume_token_ids)
        options = self._calls.options(timeout_s)
        return self._stream(request, options)

    def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        """The ids of a text, or of chat messages as the model's template renders them."""
        return tuple(self._call(self._inference.Tokenize, tokenize_request(prompt)).token_ids)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        text: str = self._call(self._inference.Detokenize, detokenize_request(token_ids)).text
        return text

    def abort(self, request_id: str) -> bool:
        """End a request. False if it had ended before; raises UnknownRequest.

        Its pages are free by then, unless the replica took longer than a second to say so.
        """
        reply = self._call(self._control.Abort, control.AbortRequest(request_id=request_id))
        return bool(reply.was_running)

    def server_info(self) -> control.GetServerInfoResponse:
        return self._call(self._control.GetServerInfo, control.GetServerInfoRequest())  # type: ignore[no-any-return]

    def model_info(self) -> control.GetModelInfoResponse:
        return self._call(self._control.GetModelInfo, control.GetModelInfoRequest())  # type: ignore[no-any-return]

    def load(self) -> control.GetLoadResponse:
        return self._call(self._control.GetLoad, control.GetLoadRequest())  # type: ignore[no-any-return]

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Any) -> Any:
        options = self._calls.options(None)
        with self._calls.errors(options):
            return method(request, **options)

    def _stream(self, request: inference.GenerateRequest, options: dict[str, Any]) -> Iterator[Delta]:
        failure: Failure | None = None
        call = self._inference.Generate(request, **options)
        try:
            with self._calls.errors(options):
                for message in call:
                    if not message.HasField("accepted"):
                        delta = delta_from_proto(message)
                        failure = failure or delta.failure
                        yield delta
        finally:
            call.cancel()
        if failure is not None:
            raise error_of(failure.code, failure.text)


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited; `stream` is iterated with `async for`.

    Made and used on one loop.
    """

    def __init__(
        self,
        target: str,
        token: str | None = None,
        *,
        timeout_s: float | None = None,
        tls_ca: Path | None = None,
    ) -> None:
        self._calls = _Calls(target, token, timeout_s)
        credentials = _credentials(tls_ca)
        if credentials:
            self._channel = grpc.aio.secure_channel(target, credentials, options=client_options(target))
        else:
            self._channel = grpc.aio.insecure_channel(target, options=client_options(target))
        self._inference: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._control: Any = control_pb2_grpc.ControlServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> Completion | list[Completion]:
        completions = await self.generate_all(prompt, params, **options)
        return completions if params is not None and params.n > 1 else completions[0]

    async def generate_all(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> list[Completion]:
        return _answered(collect([delta async for delta in self.stream(prompt, params, **options)]))

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        resume_token_ids: Sequence[int] = (),
        timeout_s: float | None = None,
    ) -> AsyncIterator[Delta]:
        request = _generate(prompt, params, request_id, resume_token_ids)
        options = self._calls.options(timeout_s)
        return self._stream(request, options)

    async def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple((await self._call(self._inference.Tokenize, tokenize_request(prompt))).token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        text: str = (await self._call(self._inference.Detokenize, detokenize_request(token_ids))).text
        return text

    async def abort(self, request_id: str) -> bool:
        reply = await self._call(self._control.Abort, control.AbortRequest(request_id=request_id))
        return bool(reply.was_running)

    async def server_info(self) -> control.GetServerInfoResponse:
        return await self._call(self._control.GetServerInfo, control.GetServerInfoRequest())  # type: ignore[no-any-return]

    async def model_info(self) -> control.GetModelInfoResponse:
        return await self._call(self._control.GetModelInfo, control.GetModelInfoRequest())  # type: ignore[no-any-return]

    async def load(self) -> control.GetLoadResponse:
        return await self._call(self._control.GetLoad, control.GetLoadRequest())  # type: ignore[no-any-return]

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any) -> Any:
        options = self._calls.options(None)
        with self._calls.errors(options):
            return await method(request, **options)

    async def _stream(
        self, request: inference.GenerateRequest, options: dict[str, Any]
    ) -> AsyncIterator[Delta]:
        failure: Failure | None = None
        call = self._inference.Generate(request, **options)
        try:
            with self._calls.errors(options):
                async for message in call:
                    if not message.HasField("accepted"):
                        delta = delta_from_proto(message)
                        failure = failure or delta.failure
                        yield delta
        finally:
            call.cancel()
        if failure is not None:
            raise error_of(failure.code, failure.text)


class _Calls:
    """What both clients do around a call."""

    def __init__(self, target: str, token: str | None, timeout_s: float | None) -> None:
        self._target = target
        self._metadata = token_metadata(token)
        self._timeout_s = _checked(timeout_s)

    def options(self, timeout_s: float | None) -> dict[str, Any]:
        timeout = self._timeout_s if timeout_s is None else _checked(timeout_s)
        return {"metadata": self._metadata, "timeout": timeout}

    @contextmanager
    def errors(self, options: dict[str, Any]) -> Iterator[None]:
        """A status becomes an error of our tree; what gRPC itself says of a connection names the target."""
        try:
            yield
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            if code == "DEADLINE_EXCEEDED" and options["timeout"] is not None:
                details = f"{self._target} did not end the call within timeout_s ({options['timeout']:g} s)"
            elif "connect" in details or not details:
                details = f"{self._target}: {details or code.lower()}"
            raise error_of(code, details) from None


def _answered(completions: list[Completion]) -> list[Completion]:
    if not completions:
        raise HeadwayError("the server ended the stream without an answer")
    return completions


def _generate(
    prompt: Prompt, params: SamplingParams | None, request_id: str | None, resume: Sequence[int]
) -> inference.GenerateRequest:
    sampling = params or SamplingParams()
    return generate_request(prompt, sampling, request_id=request_id, resume_token_ids=tuple(resume))


def _checked(timeout_s: float | None) -> float | None:
    if timeout_s is not None:
        check_number("timeout_s", timeout_s)
    return timeout_s


def _credentials(tls_ca: Path | None) -> grpc.ChannelCredentials | None:
    try:
        return channel_credentials(tls_ca)
    except OSError as error:
        raise StartError(f"{error.filename} cannot be read: {error.strerror}") from None
