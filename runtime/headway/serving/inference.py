"""InferenceService: check, tokenise, route, stream."""

import asyncio
import uuid

from headway.core.limits import check_length, check_token_ids
from headway.link.messages import sampling_from_proto
from headway.rpc.v1 import inference_pb2, inference_pb2_grpc
from headway.serving.messages import delta_to_proto, prompt_from_proto
from headway.serving.model import ServedModel
from headway.serving.router import Router
from headway.serving.sequences import make_sequences
from headway.serving.status import Context, refuse, refusing
from headway.serving.stream import DeltaStream


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, model: ServedModel, router: Router) -> None:
        self._model = model
        self._router = router

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Context) -> None:  # noqa: N802
        """A coroutine that writes, not a generator: cancellation (by the client, its deadline or its
        disconnection) is raised right here and ends the sequences at once, also within a write."""
        try:
            stream = await self._accept(request)
        except Exception as error:
            await refuse(context, error)
        try:
            accepted = inference_pb2.Accepted(request_id=stream.request_id, seed=stream.seed)
            await context.write(inference_pb2.GenerateResponse(accepted=accepted))
            async for delta in stream:
                await context.write(delta_to_proto(delta))
        finally:
            self._router.close(stream.request_id)

    @refusing
    async def Tokenize(  # noqa: N802
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        prompt = prompt_from_proto(request)
        token_ids = await asyncio.to_thread(self._model.encode, prompt)
        return inference_pb2.TokenizeResponse(token_ids=token_ids)

    @refusing
    async def Detokenize(  # noqa: N802
        self, request: inference_pb2.DetokenizeRequest, context: Context
    ) -> inference_pb2.DetokenizeResponse:
        check_length("token_ids", request.token_ids)
        check_token_ids("token_ids", request.token_ids, self._router.info.vocab_size)
        text = await asyncio.to_thread(self._model.decode, request.token_ids)
        return inference_pb2.DetokenizeResponse(text=text)

    async def _accept(self, request: inference_pb2.GenerateRequest) -> DeltaStream:
        """Everything that can be wrong with a request is found here, the cheapest first."""
        sampling = sampling_from_proto(request.sampling)
        request_id = request.request_id if request.HasField("request_id") else str(uuid.uuid4())
        check_length("request_id", request_id)
        self._router.check_room(sampling.n)
        prompt = prompt_from_proto(request)
        # In a thread: a long text takes a while, and the tokenizer lets go of the interpreter meanwhile.
        prompt_ids = await asyncio.to_thread(self._model.encode, prompt)
        sequences = make_sequences(
            self._model,
            self._router.info,
            request_id=request_id,
            prompt_ids=prompt_ids,
            sampling=sampling,
            resume_token_ids=tuple(request.resume_token_ids),
        )
        return self._router.open(request_id, sequences, self._model.tokenizer)
