"""A front end over real gRPC on loopback; the engine alone is a fake.

The fake generates token = f(seed, position), step by step, and can be held between steps, so that no test
waits for a clock.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from headway.core.request import EngineRequest, FinishReason, Load, Logprob, ReplicaInfo, TokenEvent
from headway.link.client import ReplicaLink
from headway.link.server import ReplicaServer
from headway.serving.chat_template import ChatTemplate
from headway.serving.model import ServedModel
from headway.serving.server import Server, ServerConfig
from headway.serving.tokenizer import TextTokenizer

EOS = 256


INFO = ReplicaInfo(
    world_size=2,
    device="cpu",
    dtype="float32",
    vocab_size=257,
    max_model_len=64,
    page_size=4,
    num_pages=32,
    pool_bytes=4096,
)


def byte_model() -> ServedModel:
    """A tokenizer with a token for each byte, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", {})
    return ServedModel(
        name="bytes", eos_token_ids=(EOS,), tokenizer=TextTokenizer(backend), template=template
    )


MODEL = byte_model()


def letters(request: EngineRequest, position: int) -> int:
    return MODEL.encode("abcdefghijklmnopqrstuvwxyz")[(request.seed + 7 * position) % 26]


def script(text: str) -> Callable[[EngineRequest, int], int]:
    ids = (*MODEL.encode(text), EOS)
    return lambda request, position: ids[position]


class FakeEngine:
    """An EnginePort on a thread of its own; where `held`, each step must be let go by `step`."""

    def __init__(
        self, next_token: Callable[[EngineRequest, int], int] = letters, *, held: bool = False
    ) -> None:
        self.info = INFO
        self.submitted: list[EngineRequest] = []
        self.aborted: list[str] = []
        self._next_token = next_token
        self._running: dict[str, list[Any]] = {}
        self._ended: list[TokenEvent] = []
        self._allowed = 0 if held else 1 << 30
        self._steps = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._listener: Callable[[Sequence[TokenEvent], Load], None] = lambda events, load: None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def submit(self, request: EngineRequest) -> None:
        with self._changed:
            self.submitted.append(request)
            self._running[request.request_id] = [request, len(request.output_ids)]
            self._changed.notify_all()

    def abort(self, request_id: str) -> None:
        with self._changed:
            if self._running.pop(request_id, None):
                self.aborted.append(request_id)
                self._ended.append(
                    TokenEvent(request_id=request_id, finish_reason=FinishReason.ABORT, num_pages_freed=3)
                )
                self._changed.notify_all()

    def set_listener(self, listener: Callable[[Sequence[TokenEvent], Load], None]) -> None:
        self._listener = listener

    def step(self, count: int = 1) -> None:
        with self._changed:
            self._allowed += count
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout=20):
                raise TimeoutError("the engine was not told")

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def num_running(self) -> int:
        return len(self._running)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopped or self._ended or (self._running and self._allowed)
                )
                if self._stopped:
                    return
                events, self._ended = self._ended, []
                if self._running and self._allowed:
                    self._allowed -= 1
                    events += [self._advance(*entry) for entry in list(self._running.values())]
                self._steps += 1
                load = Load(
                    num_running=len(self._running),
                    num_waiting=0,
                    free_pages=32,
                    num_pages=32,
                    step=self._steps,
                )
                self._changed.notify_all()
            self._listener(events, load)

    def _advance(self, request: EngineRequest, position: int) -> TokenEvent:
        token = self._next_token(request, position)
        self._running[request.request_id][1] += 1
        ended = token in request.stop_token_ids
        full = position + 1 == request.sampling.max_tokens
        if ended or full:
            del self._running[request.request_id]
        reason = FinishReason.STOP if ended else FinishReason.LENGTH if full else None
        logprobs = (Logprob(token_id=token, logprob=-0.5),) if request.sampling.logprobs is not None else ()
        return TokenEvent(
            request_id=request.request_id, token_id=token, logprobs=logprobs, finish_reason=reason
        )


def expected(seed: int, count: int, start: int = 0) -> str:
    return "".join("abcdefghijklmnopqrstuvwxyz"[(seed + 7 * p) % 26] for p in range(start, count))


@asynccontextmanager
async def serving(
    *engines: FakeEngine, model: ServedModel = MODEL, **config: Any
) -> AsyncIterator[tuple[Server, list[ReplicaServer]]]:
    ends = [ReplicaServer(engine, token="inner") for engine in engines]
    try:
        links = [await ReplicaLink.connect(end.address, "inner") for end in ends]
        server = await Server.start(model, links, ServerConfig(address="127.0.0.1:0", **config))
        try:
            yield server, ends
        finally:
            await server.stop(0)
    finally:
        for end in ends:
            end.stop()
        for engine in engines:
            engine.stop()


@contextmanager
def served(*engines: FakeEngine, **config: Any) -> Iterator[str]:
    """The same on a thread with its own loop, for callers without asyncio; yields the address."""
    started: list[str] = []
    ready, done = threading.Event(), threading.Event()

    async def run() -> None:
        async with serving(*engines, **config) as (server, _):
            started.append(server.address)
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        if not ready.wait(20):
            raise TimeoutError("the server did not start")
        yield started[0]
    finally:
        done.set()
        thread.join()
