"""The router with replicas that do as they are told."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest

from headway.core.errors import (
    DuplicateRequest,
    InvalidRequest,
    Overloaded,
    ReplicaUnavailable,
    UnknownRequest,
)
from headway.core.request import EngineRequest, FinishReason, Load, ReplicaInfo, TokenEvent
from headway.core.sampling import SamplingParams
from headway.serving import router as router_module
from headway.serving.model import ServedModel
from headway.serving.output import Delta, Output
from headway.serving.router import Aborted, Router
from headway.serving.sequences import make_sequences

INFO = ReplicaInfo(
    world_size=1,
    device="cpu",
    dtype="float32",
    vocab_size=100,
    max_model_len=32,
    page_size=4,
    num_pages=16,
    pool_bytes=0,
)


HAD_ENDED = Aborted(was_running=False, num_pages_freed=0)


class FakeReplica:
    def __init__(self, busy: int = 0) -> None:
        self.info = INFO
        self.load = Load(num_running=busy, num_waiting=0, free_pages=16, num_pages=16, step=0)
        self.submitted: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.closed = False
        self.broken = False
        self._taken = asyncio.Event()
        self._steps: asyncio.Queue[list[TokenEvent] | Exception] = asyncio.Queue()

    def submit(self, request: EngineRequest) -> None:
        if self.broken:
            raise ReplicaUnavailable("broken")
        self.submitted.append(request)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def token(self, token_id: int, reason: FinishReason | None = None, request: int = -1) -> None:
        request_id = self.submitted[request].request_id
        self._steps.put_nowait([TokenEvent(request_id=request_id, token_id=token_id, finish_reason=reason)])

    def end_aborted(self, request_id: str, num_pages_freed: int | None) -> None:
        event = TokenEvent(
            request_id=request_id, finish_reason=FinishReason.ABORT, num_pages_freed=num_pages_freed
        )
        self._steps.put_nowait([event])

    def fail(self) -> None:
        self._steps.put_nowait(ReplicaUnavailable("at 10.1.2.3"))

    async def __aiter__(self) -> AsyncIterator[Sequence[TokenEvent]]:
        while True:
            step = await self._steps.get()
            if isinstance(step, Exception):
                raise step
            yield step
            if not step:
                self._taken.set()

    async def idle(self) -> None:
        """Until the router has taken every step."""
        self._taken = asyncio.Event()
        self._steps.put_nowait([])
        await self._taken.wait()

    async def close(self) -> None:
        self.closed = True


def sequences(*names: str, **sampling: object) -> list[EngineRequest]:
    params = SamplingParams(**sampling)  # type: ignore[arg-type]
    return [EngineRequest(request_id=name, prompt_ids=(1, 2), sampling=params, seed=0) for name in names]


def routed(check: Callable[..., Coroutine[None, None, None]], *replicas: FakeReplica, **options: int) -> None:
    async def run() -> None:
        router = Router(**options)  # type: ignore[arg-type]
        for replica in replicas:
            router.add(replica)
        await check(router, *replicas)
        await router.stop()
        assert all(replica.closed for replica in replicas)

    asyncio.run(run())


def test_the_least_busy_replica_takes_the_next_sequence() -> None:
    async def check(router: Router, idle: FakeReplica, busy: FakeReplica) -> None:
        router.open("a", sequences("a0", "a1", "a2", "a3", n=4), None)
        assert [request.request_id for request in idle.submitted] == ["a0", "a1", "a2"]
        assert [request.request_id for request in busy.submitted] == ["a3"]

    routed(check, FakeReplica(), FakeReplica(busy=2))


def test_the_longest_prompt_is_what_the_replica_says_even_where_its_pool_holds_fewer_tokens() -> None:
    """Windows free pages as a sequence goes on: only the replica knows how far it comes."""

    async def check(router: Router, replica: FakeReplica) -> None:
        (longest,) = make_sequences(model, router.info, **request, prompt_ids=(1,) * 199)
        router.open("a", [longest], None)
        assert replica.submitted == [longest]
        with pytest.raises(InvalidRequest, match=r"prompt must be 1 to 199 tokens .*, got 200"):
            make_sequences(model, router.info, **request, prompt_ids=(1,) * 200)

    model = ServedModel(name="m", eos_token_ids=(), tokenizer=None, template=None)
    request: dict[str, Any] = {"request_id": "a", "sampling": SamplingParams(max_tokens=1)}
    windowed = FakeReplica()
    windowed.info = replace(INFO, max_model_len=200)
    assert INFO.num_pages * INFO.page_size < 200
    routed(check, windowed)


def test_deltas_come_in_order_and_gather_while_the_reader_is_away() -> None:
    async def check(router: Router, replica: FakeReplica) -> None:
        stream = router.open("a", sequences("a0"), None)
        replica.token(5)
        assert (await anext(stream)).token_ids == (5,)
        for token in (6, 7):
            replica.token(token)
        replica.token(8, FinishReason.LENGTH)
        await replica.idle()
        delta = await anext(stream)
        assert (delta.token_ids, delta.finish_reason) == ((6, 7, 8), FinishReason.LENGTH)
        assert (delta.num_prompt_tokens, delta.num_output_tokens) == (2, 4)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        router.close("a")
        assert replica.aborted == []

    routed(check, FakeReplica())


def test_a_failed_replica_ends_what_it_ran_once_and_gets_no_more() -> None:
    async def check(router: Router, first: FakeReplica, second: FakeReplica) -> None:
        stream = router.open("a", sequences("a0", "a1", n=2), None)
        first.token(5)
        first.fail()
        second.token(6, FinishReason.LENGTH)
        deltas = [delta async for delta in stream]
        ends = {delta.index: delta for delta in deltas if delta.terminal}
        assert [delta.index for delta in deltas if delta.terminal] == [*ends]
        assert ends[0].failure is not None
        assert (ends[0].failure.code, ends[0].failure.retryable) == ("UNAVAILABLE", True)
        assert "10.1.2.3" not in ends[0].failure.text
        assert ends[1].finish_reason == FinishReason.LENGTH
        router.open("b", sequences("b0"), None)
        assert second.submitted[-1].request_id == "b0"

    routed(check, FakeReplica(), FakeReplica())


def test_a_replica_that_breaks_while_it_is_given_work_ends_that_work() -> None:
    async def check(router: Router, replica: FakeReplica) -> None:
        replica.broken = True
        deltas = [delta async for delta in router.open("a", sequences("a0"), None)]
        assert [delta.failure.code for delta in deltas if delta.failure] == ["UNAVAILABLE"]

    routed(check, FakeReplica())


def test_an_error_of_the_engine_is_the_terminal_message_and_keeps_secrets() -> None:
    async def check(router: Router, replica: FakeReplica) -> None:
        stream = router.open("a", sequences("a0", "a1", n=2), None)
        known = TokenEvent(request_id="a0", error="too late", error_code="UNAVAILABLE", retryable=True)
        bug = TokenEvent(request_id="a1", error="KeyError in /srv/x.py", error_code="INTERNAL")
        replica._steps.put_nowait([known, bug])
        failures = [delta.failure async for delta in stream]
        assert [(f.code, f.retryable) for f in failures if f] == [("UNAVAILABLE", True), ("INTERNAL", False)]
        assert "/srv" not in str(failures)

    routed(check, FakeReplica())


def test_a_bug_in_the_text_of_one_request_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Buggy(Output):
        def push(self, event: TokenEvent) -> Delta:
            if event.token_id == 13:
                raise KeyError("/srv/secret")
            return super().push(event)

    async def check(router: Router, replica: FakeReplica) -> None:
        stream = router.open("a", sequences("a0", "a1", n=2), None)
        replica.token(13, request=0)
        replica.token(7, FinishReason.LENGTH, request=1)
        ends = {delta.index: delta async for delta in stream}
        assert ends[0].failure is not None
        assert (ends[0].failure.code, "secret" in ends[0].failure.text) == ("INTERNAL", False)
        assert ends[1].finish_reason == FinishReason.LENGTH
        assert replica.aborted == ["a0"]

    monkeypatch.setattr(router_module, "Output", Buggy)
    routed(check, FakeReplica())


def test_an_output_that_cannot_be_made_leaves_the_id_free_and_nothing_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Buggy(Output):
        def __init__(self, request: EngineRequest, tokenizer: None, index: int = 0) -> None:
            super().__init__(request, tokenizer, index)
            if request.request_id == "a1":
                raise KeyError("planted")

    async def check(router: Router, replica: FakeReplica) -> None:
        with pytest.raises(KeyError, match="planted"):
            router.open("a", sequences("a0", "a1", n=2), None)
        assert (replica.submitted, router.num_in_flight) == ([], 0)
        router.open("a", sequences("a2"), None)
        assert router.num_in_flight == 1

    monkeypatch.setattr(router_module, "Output", Buggy)
    routed(check, FakeReplica())


def test_a_request_that_cannot_be_sent_ends_alone() -> None:
    class Picky(FakeReplica):
        def submit(self, request: EngineRequest) -> None:
            if request.request_id == "a0":
                raise ValueError("/srv/secret")
            super().submit(request)

    async def check(router: Router, replica: FakeReplica) -> None:
        stream = router.open("a", sequences("a0", "a1", n=2), None)
        replica.token(7, FinishReason.LENGTH)
        ends = {delta.index: delta async for delta in stream}
        assert ends[0].failure is not None
        assert (ends[0].failure.code, "secret" in ends[0].failure.text) == ("INTERNAL", False)
        assert ends[1].finish_reason == FinishReason.LENGTH

    routed(check, Picky())


def test_ids_in_use_and_full_queues_are_refused_and_nothing_is_started() -> None:
    async def check(router: Router, replica: FakeReplica) -> None:
        router.open("a", sequences("a0"), None)
        with pytest.raises(DuplicateRequest):
            router.open("a", sequences("a1"), None)
        with pytest.raises(Overloaded, match="1 of 2 sequences are in flight, 2 more do not fit"):
            router.open("b", sequences("b0", "b1"), None)
        assert len(replica.submitted) == 1
        router.close("a")
        assert replica.aborted == ["a0"]
        router.open("b", sequences("b0", "b1", n=2), None)

    routed(check, FakeReplica(), max_in_flight=2)


def test_abort_tells_running_ended_and_unknown_apart() -> None:
    async def check(router: Router, replica: FakeReplica) -> None:
        stream = router.open("a", sequences("a0"), None)
        replica.end_aborted("a0", 3)
        assert await router.abort("a") == Aborted(was_running=True, num_pages_freed=3)
        assert await router.abort("a") == HAD_ENDED
        assert [delta.finish_reason async for delta in stream] == [FinishReason.ABORT]
        router.close("a")
        assert await router.abort("a") == HAD_ENDED
        assert replica.aborted == ["a0"]
        for unknown in ("A", "a0", ""):
            with pytest.raises(UnknownRequest):
                await router.abort(unknown)
        replica.token(3)  # a late token of what has ended is no harm

    routed(check, FakeReplica())


def test_abort_answers_when_every_replica_has_told_of_its_pages() -> None:
    async def check(router: Router, first: FakeReplica, second: FakeReplica) -> None:
        stream = router.open("a", sequences("a0", "a1", "a2", n=3), None)
        abort = asyncio.create_task(router.abort("a"))
        ends = [delta.finish_reason async for delta in stream]  # at once: only the answer waits
        assert ends == [FinishReason.ABORT] * 3
        router.close("a")
        assert (first.aborted, second.aborted) == (["a0", "a2"], ["a1"])
        first.end_aborted("a0", 3)
        first.end_aborted("a2", 0)
        first.token(5, request=0)  # of no request that is left
        await first.idle()
        assert not abort.done()
        second.end_aborted("a1", 4)
        assert await abort == Aborted(was_running=True, num_pages_freed=7)

    routed(check, FakeReplica(), FakeReplica())


def test_abort_does_not_say_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = Aborted(was_running=True, num_pages_freed=None)

    async def check(router: Router, replica: FakeReplica) -> None:
        for name in ("late", "ends by itself", "lost"):
            router.open(name, sequences(f"{name}0", f"{name}1", n=2), None)
        monkeypatch.setattr(router_module, "ABORT_TIMEOUT_S", 0.05)
        replica.end_aborted("late0", 3)
        assert await router.abort("late") == unknown
        replica.end_aborted("late1", 3)
        await replica.idle()  # nobody waits for it any more
        monkeypatch.setattr(router_module, "ABORT_TIMEOUT_S", 20.0)
        replica.end_aborted("ends by itself0", None)
        replica.end_aborted("ends by itself1", 3)
        assert await router.abort("ends by itself") == unknown
        abort = asyncio.create_task(router.abort("lost"))
        await replica.idle()
        replica.fail()
        assert await abort == unknown

    routed(check, FakeReplica())


def test_without_a_replica_nothing_is_accepted() -> None:
    async def check(router: Router) -> None:
        with pytest.raises(ReplicaUnavailable, match="no replica is ready"):
            router.open("a", sequences("a0"), None)
        assert router.num_in_flight == 0

    routed(check)


def test_a_resumed_sequence_that_fills_the_context_ends_without_an_engine() -> None:
    async def check(router: Router, replica: FakeReplica) -> None:
        full = EngineRequest(
            request_id="a0", prompt_ids=(1,) * 30, sampling=SamplingParams(), seed=0, output_ids=(1, 1)
        )
        deltas = [delta async for delta in router.open("a", [full], None)]
        assert [(d.finish_reason, d.num_output_tokens) for d in deltas] == [(FinishReason.LENGTH, 2)]
        assert replica.submitted == []

    routed(check, FakeReplica())
