"""ControlService: what runs here, how busy it is, and Abort."""

import time

from headway.core.limits import check_length
from headway.core.version import __version__
from headway.link.messages import info_to_proto, load_to_proto
from headway.rpc.v1 import control_pb2, control_pb2_grpc
from headway.serving.model import ServedModel
from headway.serving.router import Router
from headway.serving.sequences import max_prompt_tokens
from headway.serving.status import Context, refusing


class ControlService(control_pb2_grpc.ControlServiceServicer):
    def __init__(self, model: ServedModel, router: Router) -> None:
        self._model = model
        self._router = router
        self._started = time.monotonic()

    @refusing
    async def GetServerInfo(  # noqa: N802
        self, request: control_pb2.GetServerInfoRequest, context: Context
    ) -> control_pb2.GetServerInfoResponse:
        return control_pb2.GetServerInfoResponse(
            version=__version__,
            uptime_ms=int(1000 * (time.monotonic() - self._started)),
            replicas=[info_to_proto(replica.info) for replica in self._router.replicas],
        )

    @refusing
    async def GetModelInfo(  # noqa: N802
        self, request: control_pb2.GetModelInfoRequest, context: Context
    ) -> control_pb2.GetModelInfoResponse:
        info = self._router.info
        return control_pb2.GetModelInfoResponse(
            name=self._model.name,
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            max_prompt_tokens=max_prompt_tokens(info),
            eos_token_ids=self._model.eos_token_ids,
            has_tokenizer=self._model.tokenizer is not None,
            has_chat_template=self._model.template is not None,
        )

    @refusing
    async def GetLoad(  # noqa: N802
        self, request: control_pb2.GetLoadRequest, context: Context
    ) -> control_pb2.GetLoadResponse:
        return control_pb2.GetLoadResponse(
            num_in_flight=self._router.num_in_flight,
            replicas=[load_to_proto(replica.load) for replica in self._router.replicas],
        )

    @refusing
    async def Abort(  # noqa: N802
        self, request: control_pb2.AbortRequest, context: Context
    ) -> control_pb2.AbortResponse:
        check_length("request_id", request.request_id)
        aborted = await self._router.abort(request.request_id)
        return control_pb2.AbortResponse(
            was_running=aborted.was_running, num_pages_freed=aborted.num_pages_freed
        )
