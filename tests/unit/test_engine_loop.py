"""The engine on its own thread: what comes in from others, what each request is told, and how it ends."""

import socket
import threading
from queue import SimpleQueue

import pytest

from checkpoints import Oracle
from driving import make_request, run, tokens
from headway.core.config import EngineConfig
from headway.core.errors import DuplicateRequest, InvalidRequest, ReplicaError, ReplicaUnavailable
from headway.core.request import EngineRequest, FinishReason, Load, TokenEvent
from headway.core.step import StepPlan
from headway.engine.build import build_engine, solo_engine, thread_engine
from headway.engine.channel import Connection
from headway.engine.engine import Engine
from headway.engine.local import SoloRanks
from headway.engine.loop import CHECK_INTERVAL_S
from headway.engine.offline import OfflineReplica
from headway.engine.processes import watch
from headway.model.collectives import SoloCollectives
from headway.scheduler.pages import IntegrityError
from headway.worker.rank import PendingStep, Rank
from headway.worker.shard import Shard, pick_device
from held_engine import CONFIG, NUM_PAGES, PROMPT, WAIT_S, HeldRanks, Planted, setting


def test_requests_from_many_threads_all_get_what_they_would_get_alone(gqa: Oracle) -> None:
    engine = solo_engine(gqa.folder, CONFIG)
    requests = [make_request(str(n), (n + 1, n + 2), max_tokens=6) for n in range(12)]
    alone = {name: tokens(events) for name, events in run(engine, requests).items()}
    with setting(gqa) as it:
        threads = [threading.Thread(target=it.loop.submit, args=(request,)) for request in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        it.listener.wait_for_end(*alone)
        assert {name: tokens(it.listener.of(name)) for name in alone} == alone


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (make_request("a", PROMPT, max_tokens=90), DuplicateRequest("request_id 'a' is in use")),
        (
            make_request("b", (1,) * 128),
            InvalidRequest("prompt", "1 to 127 tokens (the context and the page pool)", 128),
        ),
        (
            make_request("b", ()),
            InvalidRequest("prompt", "1 to 127 tokens (the context and the page pool)", 0),
        ),
    ],
    ids=["id in use", "too long", "empty"],
)
def test_a_refused_request_ends_with_one_event_and_its_reason(
    gqa: Oracle, request_: EngineRequest, error: Exception
) -> None:
    with setting(gqa, held=True) as it:
        it.loop.submit(make_request("a", PROMPT, max_tokens=90))
        it.loop.submit(request_)
        it.ranks.let(2)
        it.listener.wait(lambda: any(event.error for event in it.listener.events))
        (refused,) = [event for event in it.listener.events if event.error]
        assert (refused.request_id, refused.error) == (request_.request_id, str(error))
        assert (refused.error_code, refused.retryable) == (type(error).code, False)


def test_an_abort_frees_the_pages_within_the_running_step(gqa: Oracle) -> None:
    with setting(gqa, held=True) as it:
        it.loop.submit(make_request("a", PROMPT))
        it.ranks.let()
        it.ranks.wait_for_launch(2)  # the second step is running
        it.loop.abort("a")
        it.ranks.let()
        it.listener.wait_for_end("a")
        *_, end = it.listener.of("a")
        assert (end.finish_reason, end.token_id) == (FinishReason.ABORT, None)
        assert end.num_pages_freed == 2  # of 4 slots, for the prompt's 5 tokens and two more
        assert it.listener.loads[-1].free_pages == NUM_PAGES
        assert it.ranks.num_launched == 2


@pytest.mark.parametrize(("num_pages", "freed"), [(32, 3), (64, None)])
def test_pages_freed_are_not_told_where_another_group_is_the_tightest_afterwards(
    num_pages: int, freed: int | None
) -> None:
    class TwoGroups:
        free = iter([(5, 32), (8, num_pages)])

        def abort(self, request_id: str) -> bool:
            return True

        def load(self) -> Load:
            free_pages, num_pages = next(self.free)
            return Load(num_running=0, num_waiting=0, free_pages=free_pages, num_pages=num_pages, step=1)

    engine = Engine(scheduler=TwoGroups(), ranks=None, info=None)  # type: ignore[arg-type]
    end = engine.abort("a")
    assert end is not None
    assert end.num_pages_freed == freed


def test_a_request_aborted_while_it_waits_for_a_row_is_told_so(gqa: Oracle) -> None:
    with setting(gqa, held=True) as it:
        for n in range(9):  # there are 8 rows
            it.loop.submit(make_request(str(n), PROMPT))
        it.loop.abort("8")
        it.ranks.let(2)
        it.listener.wait_for_end("8")
        ends = [(event.finish_reason, event.num_pages_freed) for event in it.listener.of("8")]
        assert ends == [(FinishReason.ABORT, 0)]


def test_aborts_of_unknown_and_ended_requests_are_ignored_and_take_no_step(gqa: Oracle) -> None:
    with setting(gqa) as it:
        it.loop.submit(make_request("a", PROMPT, max_tokens=3))
        it.listener.wait_for_end("a")
        num_told, num_launched = len(it.listener.loads), it.ranks.num_launched
        for name in ("a", "never seen"):
            it.loop.abort(name)
        it.listener.wait(lambda: len(it.listener.loads) > num_told)
        assert it.ranks.num_launched == num_launched == 3
        assert len(it.listener.events) == 3


# How it ends


FAULTS = [ReplicaError("rank 1: gone"), Planted("secret"), MemoryError()]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_failed_step_ends_every_request_once_and_then_the_loop(
    gqa: Oracle, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with setting(gqa, held=True) as it:
        names = [str(n) for n in range(10)]  # two more than there are rows
        for name in names:
            it.loop.submit(make_request(name, PROMPT))
        it.ranks.let()
        it.listener.wait(lambda: len(it.listener.of("0")) == 1)
        it.ranks.fault = fault
        it.ranks.let()
        it.listener.wait_for_end(*names)
        it.loop.stop()  # waits for the loop's thread
        for name in names:
            (end,) = [event for event in it.listener.of(name) if event.terminal]
            assert it.listener.of(name)[-1] is end
            assert (end.error_code, end.retryable, end.finish_reason) == ("UNAVAILABLE", True, None)
            assert "step failed" in str(end.error)
            assert "secret" not in str(end.error), "the text of a bug is for the log alone"
        assert it.listener.loads[-1].free_pages == NUM_PAGES
    assert "step failed" in caplog.text


def test_a_failed_step_ends_the_loop_by_itself(gqa: Oracle) -> None:
    with setting(gqa) as it:
        it.ranks.fault = ReplicaError("rank 1: gone")
        it.loop.submit(make_request("a", PROMPT))
        it.listener.wait_for_end("a")
        assert it.ended.get(timeout=WAIT_S) == ("engine", "the replica's step failed: rank 1: gone")
        assert it.ranks.num_closed == 1
        with pytest.raises(ReplicaUnavailable, match="rank 1: gone"):
            it.loop.submit(make_request("b", PROMPT))
        it.loop.abort("a")


def test_a_request_that_comes_in_during_the_failing_step_is_answered_too(gqa: Oracle) -> None:
    with setting(gqa, held=True) as it:
        it.ranks.fault = ReplicaError("rank 1: gone")
        it.loop.submit(make_request("a", PROMPT))
        it.ranks.wait_for_launch()
        it.loop.submit(make_request("b", PROMPT))
        it.ranks.let()
        it.listener.wait_for_end("a", "b")
        (end,) = it.listener.of("b")
        assert (end.error_code, end.retryable) == ("UNAVAILABLE", True)


def test_stopping_finishes_the_running_step_and_ends_what_is_left_with_a_retryable_error(gqa: Oracle) -> None:
    with setting(gqa, held=True) as it:
        it.loop.submit(make_request("a", PROMPT))
        it.ranks.wait_for_launch()
        it.loop.submit(make_request("b", PROMPT))
        stop = threading.Thread(target=it.loop.stop)
        stop.start()
        it.ranks.let()
        stop.join(WAIT_S)
        token, end = it.listener.of("a")
        assert token.token_id is not None
        for event in (end, *it.listener.of("b")):
            assert (event.error, event.error_code) == ("the replica is stopping", "UNAVAILABLE")
            assert event.retryable
        assert it.ranks.num_launched == 1


def test_stop_is_safe_twice_and_nothing_gets_in_afterwards(gqa: Oracle) -> None:
    with setting(gqa) as it:
        it.loop.stop()
        it.loop.stop()
        assert it.ended.get_nowait()[1] is None, "nothing failed"
        assert it.ended.empty()
        assert it.ranks.num_closed == 1
        it.loop.abort("a")
        with pytest.raises(ReplicaUnavailable, match="the replica is stopping"):
            it.loop.submit(make_request("a", PROMPT))


def test_the_end_is_told_even_if_the_ranks_cannot_be_closed(
    gqa: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with setting(gqa) as it:
        monkeypatch.setattr(it.ranks, "close", lambda: 1 / 0)
        it.loop.stop()
        assert it.ended.qsize() == 1


def test_books_so_broken_that_requests_cannot_be_ended_still_end_the_loop_and_tell_the_others(
    gqa: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[str]:
        raise IntegrityError("page 3 is used by someone who does not hold it")

    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with setting(gqa, held=True) as it:
        monkeypatch.setattr(it.engine._scheduler, "drop_all", broken)
        it.ranks.fault = ReplicaError("rank 1: gone")
        it.loop.submit(make_request("a", PROMPT))
        it.ranks.wait_for_launch()
        it.loop.submit(make_request("b", PROMPT))
        it.ranks.let()
        it.listener.wait_for_end("b")
        it.loop.stop()
        (end,) = it.listener.of("b")
        assert (end.error, end.retryable) == ("the replica's step failed: rank 1: gone", True)
        assert it.ended.get_nowait() == ("engine", end.error)
        assert it.ranks.num_closed == 1


# The books


def test_a_page_lost_from_the_books_is_found_when_the_work_runs_out(gqa: Oracle) -> None:
    with setting(gqa) as it:
        it.engine._scheduler._groups.allocators[0]._free.pop(0)  # the planted bug
        it.loop.submit(make_request("a", PROMPT, max_tokens=3))
        it.listener.wait_for_end("a")
        assert [event.error for event in it.listener.of("a")] == [None] * 3
        text = "the replica's page check failed: free 31 + cached 0 + live 0 = 31, not num_pages 32"
        assert it.ended.get(timeout=WAIT_S) == ("engine", text)


def test_the_books_are_looked_through_when_work_has_run_out_and_seldom(
    gqa: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[bool] = []
    with setting(gqa) as it:
        monkeypatch.setattr(it.engine, "check", lambda: checks.append(it.engine.has_work))
        for name in ("a", "b", "c"):
            it.loop.submit(make_request(name, PROMPT, max_tokens=3))
            it.listener.wait_for_end(name)
        it.now[0] += CHECK_INTERVAL_S
        it.loop.submit(make_request("d", PROMPT, max_tokens=3))
        it.listener.wait_for_end("d")
        it.loop.stop()
    assert checks == [False, False]


# The same engine, driven by its caller


def test_an_offline_replica_tells_refusals_and_failures_as_events(gqa: Oracle) -> None:
    shard = Shard(gqa.folder, CONFIG, SoloCollectives(), pick_device("cpu"))
    ranks = HeldRanks(SoloRanks(shard.ready((NUM_PAGES,))))
    replica = OfflineReplica(build_engine(shard, ranks, (NUM_PAGES,)))
    replica.submit(make_request("a", PROMPT))
    replica.submit(make_request("a", PROMPT))
    refused, token = replica.next_events()
    assert (refused.error_code, token.token_id is not None) == ("ALREADY_EXISTS", True)
    ranks.fault = ReplicaError("rank 1: gone")
    (end,) = replica.next_events()
    assert (end.request_id, end.error_code, end.retryable) == ("a", "UNAVAILABLE", True)
    assert "rank 1: gone" in str(end.error)
    replica.submit(make_request("b", PROMPT))
    (end,) = replica.next_events()
    assert (end.request_id, end.error_code, end.retryable) == ("b", "UNAVAILABLE", True)
    replica.close()


def test_one_of_several_ranks_that_fails_is_named_and_the_others_do_not_wait_for_it(
    gqa: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Rank.launch

    def faulty(rank: Rank, plan: StepPlan) -> PendingStep:
        if rank.rank == 1 and plan.step == 3:
            raise Planted("out of luck")
        return launch(rank, plan)

    monkeypatch.setattr(Rank, "launch", faulty)
    engine = thread_engine(gqa.folder, EngineConfig(tp=3, page_size=4, num_pages=NUM_PAGES))
    events = all_events(engine, make_request("a", PROMPT))
    assert [event.terminal for event in events] == [False, False, True]
    assert "rank 1: Planted" in str(events[-1].error)
    assert "out of luck" not in str(events[-1].error)
    engine.close()


def all_events(engine: Engine, request: EngineRequest) -> list[TokenEvent]:
    engine.submit(request)
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def test_a_lost_rank_ends_an_idle_loop(gqa: Oracle) -> None:
    with setting(gqa) as it:
        it.loop.lose(ReplicaError("rank 1 left the step channel"))
        assert it.ended.get(timeout=WAIT_S) == (
            "engine",
            "the replica's gang failed: rank 1 left the step channel",
        )
        with pytest.raises(ReplicaUnavailable, match="rank 1 left"):
            it.loop.submit(make_request("a", PROMPT))


def test_a_follower_that_leaves_is_noticed_though_nothing_is_asked_of_it() -> None:
    lost: SimpleQueue[ReplicaError] = SimpleQueue()
    ours, theirs = socket.socketpair()
    watch([Connection(ours)], lost.put)
    assert lost.empty()
    theirs.close()
    assert str(lost.get(timeout=WAIT_S)) == "rank 1 left the step channel"
    ours.close()
