"""`headway.LLM`: a model in this process (one rank) or on Ray (several), without a server."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, Self

from headway.cluster.preflight import FoundModel, preflight
from headway.core.config import EngineConfig
from headway.core.errors import ConfigError, HeadwayError, InvalidRequest
from headway.core.progress import Report, silent
from headway.core.request import Completion, EngineRequest, ReplicaInfo, TokenEvent
from headway.core.sampling import SamplingParams
from headway.serving.model import Prompt, ServedModel, check_prompt_kind
from headway.serving.output import Delta, Output, collect
from headway.serving.sequences import make_sequences


class OfflineLink(Protocol):
    """A replica as one caller sees it: in this process, or behind a stream."""

    @property
    def info(self) -> ReplicaInfo: ...
    def submit(self, request: EngineRequest) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def next_events(self) -> list[TokenEvent]: ...
    def close(self) -> None: ...


class LLM:
    """A loaded model. Use it as a context manager; it holds memory, and with tp > 1 processes.
    Not thread-safe: one thread at a time may use it.

    model: a folder in Hugging Face layout, a hub name, or "demo".
    tp: ranks; more than one run as Ray actors on the cluster at `ray` ("auto" starts one on this host).
    report: called while the model is loaded with what is done, how much of it is, and how much there is.
    engine: further fields of `headway.core.config.EngineConfig`.

    Raises ConfigError, ModelError and StartError.
    """

    def __init__(
        self,
        model: str,
        *,
        tp: int = 1,
        device: str = "auto",
        dtype: str = "auto",
        ray: str = "auto",
        report: Report = silent,
        **engine: Any,
    ) -> None:
        if unknown := engine.keys() - EngineConfig.__dataclass_fields__.keys():
            raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}; see headway.core.config.EngineConfig")
        config = EngineConfig(tp=tp, device=device, dtype=dtype, **engine)
        found = preflight(model, config, ray=ray if tp > 1 else "local")
        self.config = config
        self._model = ServedModel.load(found.folder, name=model, eos_token_ids=found.spec.eos_token_ids)
        self._num_requests = 0
        self._events: dict[str, list[TokenEvent]] = {}  # of each running sequence: what nobody has read yet
        self._resources = ExitStack()
        self._replica: OfflineLink | None = self._start(found, config, ray, report)

    def _start(self, model: FoundModel, config: EngineConfig, ray: str, report: Report) -> OfflineLink:
        if config.tp == 1:
            from headway.engine.build import solo_engine
            from headway.engine.offline import OfflineReplica

            local = OfflineReplica(solo_engine(model.folder, config, report))
            self._resources.callback(local.close)
            return local
        from headway.cluster.gang import Gang
        from headway.cluster.session import RaySession
        from headway.link.sync_client import SyncReplicaLink

        with ExitStack() as stack:
            session = stack.enter_context(RaySession(ray, num_ranks=config.tp))
            gang = Gang(session, model.source, config)
            stack.callback(gang.stop)
            replica = gang.start(report)
            link = SyncReplicaLink(replica.target, replica.token)
            stack.callback(link.close)
            self._resources = stack.pop_all()
        return link

    @property
    def info(self) -> ReplicaInfo:
        return self._link.info

    @property
    def _link(self) -> OfflineLink:
        if self._replica is None:
            raise HeadwayError(f"LLM({self._model.name!r}) is closed; make a new one")
        return self._replica

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Complete every prompt, together. Returns n completions a prompt, in the prompts' order.

        prompts: a text, token ids, chat messages, or a list of those. Raises InvalidRequest before any
        prompt is started, ReplicaUnavailable if ranks are lost, HeadwayError after `close`.
        """
        batches = self._batches(prompts, params or SamplingParams())
        found: dict[str, list[Delta]] = {seq.request_id: [] for batch in batches for seq in batch}
        for request_id, delta in self._run(batches):
            found[request_id].append(delta)
        return [
            completion
            for batch in batches
            for completion in collect(delta for sequence in batch for delta in found[sequence.request_id])
        ]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """One completion's text as it comes. Leaving the iterator early ends the generation.

        Raises InvalidRequest, also for n > 1: the pieces do not say whose they are.
        """
        params = params or SamplingParams()
        if params.n > 1:
            raise InvalidRequest("n", "1 for a stream", params.n)
        sequences = self._sequences(prompt, params)
        for _, delta in self._run([sequences]):
            if delta.failure is not None:
                collect([delta])  # raises what it ended with
            if delta.text:
                yield delta.text

    def _batches(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams
    ) -> list[list[EngineRequest]]:
        """The sequences of each prompt. What is wrong with one of several says which."""
        one = _is_one(prompts)
        several: Sequence[Any] = [prompts] if one else prompts
        batches = []
        for index, prompt in enumerate(several):
            try:
                batches.append(self._sequences(prompt, params))
            except InvalidRequest as error:
                raise (error if one else _of_prompt(index, error)) from None
        return batches

    def _sequences(self, prompt: Prompt, params: SamplingParams) -> list[EngineRequest]:
        self._num_requests += 1
        return make_sequences(
            self._model,
            self._link.info,
            request_id=str(self._num_requests),
            prompt_ids=self._model.encode(prompt),
            sampling=params,
        )

    def _run(self, batches: Sequence[Sequence[EngineRequest]]) -> Iterator[tuple[str, Delta]]:
        """Every sequence to its end; (id, delta) as they come."""
        outputs = {
            sequence.request_id: Output(sequence, self._model.tokenizer, index)
            for batch in batches
            for index, sequence in enumerate(batch)
        }
        self._events |= {request_id: [] for request_id in outputs}
        try:
            for batch in batches:
                for sequence in batch:
                    self._link.submit(sequence)
            while outputs:
                for event in self._next(outputs):
                    output = outputs.get(event.request_id)
                    if output is None:
                        continue  # it ended here, by a stop string, before the engine knew
                    delta = output.push(event)
                    if delta.terminal:
                        del outputs[event.request_id], self._events[event.request_id]
                        if not event.terminal:
                            self._link.abort(event.request_id)
                    yield event.request_id, delta
        finally:
            for request_id in outputs:
                if self._replica is not None:
                    self._replica.abort(request_id)
                del self._events[request_id]

    def _next(self, request_ids: Iterable[str]) -> list[TokenEvent]:
        """What has happened to these sequences; if nothing yet, steps are taken until something has.

        A step is for all streams that the caller has open: what it did for the others is kept for them.
        """
        while not any(self._events[request_id] for request_id in request_ids):
            for event in self._link.next_events():
                if event.request_id in self._events:
                    self._events[event.request_id].append(event)
        taken = []
        for request_id in request_ids:
            taken += self._events[request_id]
            self._events[request_id] = []
        return taken

    def close(self) -> None:
        """Give everything back: memory, and processes. Safe to call twice; nothing else works afterwards."""
        self._resources.close()
        self._replica = None
        if self.config.tp == 1:
            from headway.engine.offline import release_memory

            release_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_one(prompts: Any) -> bool:
    """Whether it is one prompt: a text, or a list of ids or of messages."""
    check_prompt_kind(prompts)
    return isinstance(prompts, str) or bool(prompts and isinstance(prompts[0], int | Mapping))


def _of_prompt(index: int, error: InvalidRequest) -> InvalidRequest:
    """`error` with its field as the caller of `generate` knows it, if it is about a prompt."""
    name, bracket, rest = error.field.partition("[")
    if name == "prompt":
        return InvalidRequest(f"prompts[{index}]{bracket}{rest}", error.limit, error.value)
    if name in ("text", "token_ids", "messages"):
        return InvalidRequest(f"prompts[{index}].{error.field}", error.limit, error.value)
    return error
