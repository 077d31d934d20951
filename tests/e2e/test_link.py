"""The replica's end of the link: it obeys its front end, and nobody else."""

from dataclasses import replace

import pytest

from fake_engine import INFO, FakeEngine, letters
from headway.core import errors
from headway.core.request import EngineRequest, FinishReason, Load, TokenEvent
from headway.core.sampling import SamplingParams
from headway.link.server import ReplicaServer
from headway.link.switchboard import Outbox
from headway.link.sync_client import SyncReplicaLink


def test_a_front_end_that_vanishes_leaves_no_orphans_in_the_engine() -> None:
    engine = FakeEngine(held=True)
    end = ReplicaServer(engine)
    link = SyncReplicaLink(end.address)
    assert link.info == INFO
    sampling = SamplingParams(max_tokens=5)
    link.submit(EngineRequest(request_id="a", prompt_ids=(1,), sampling=sampling, seed=2))
    link.submit(EngineRequest(request_id="b", prompt_ids=(1,), sampling=sampling, seed=2))
    engine.wait_for(lambda: engine.num_running == 2)
    engine.step()
    assert [event.request_id for event in link.next_events()] == ["a", "b"]
    link.abort("a")
    ended = link.next_events()
    assert [(event.request_id, event.finish_reason) for event in ended] == [("a", FinishReason.ABORT)]
    link.close()
    engine.wait_for(lambda: engine.aborted == ["a", "b"])
    end.stop()
    engine.stop()


def test_a_replica_wants_its_token() -> None:
    engine = FakeEngine()
    end = ReplicaServer(engine, token="right")
    with pytest.raises(errors.ReplicaUnavailable, match="token is missing or wrong"):
        SyncReplicaLink(end.address, "wrong")
    end.stop()
    engine.stop()


def test_a_replica_that_fails_sends_what_is_on_its_way_and_then_says_why() -> None:
    engine = FakeEngine(held=True)
    end = ReplicaServer(engine)
    link = SyncReplicaLink(end.address)
    sampling = SamplingParams(max_tokens=5)
    link.submit(EngineRequest(request_id="a", prompt_ids=(1,), sampling=sampling, seed=2))
    engine.wait_for(lambda: engine.num_running == 1)
    failed = TokenEvent.failed("a", errors.ReplicaUnavailable("step 3 failed: rank 1: gone"))
    load = Load(num_running=0, num_waiting=0, free_pages=32, num_pages=32, step=3)
    end._switchboard.step([failed], load)
    end.stop("step 3 failed:\nrank 1: gone")
    assert link.next_events() == [failed]
    with pytest.raises(errors.ReplicaUnavailable, match=r"\(unavailable: step 3 failed: rank 1: gone\)$"):
        link.next_events()
    link.close()
    engine.stop()


def test_what_is_in_an_outbox_is_given_out_before_its_end_and_nothing_after() -> None:
    load = Load(num_running=0, num_waiting=0, free_pages=32, num_pages=32, step=3)
    outbox = Outbox(load)
    outbox.fail("a", errors.ReplicaUnavailable("gone"))
    outbox.end("why")
    outbox.end()
    outbox.fail("b", errors.ReplicaUnavailable("gone"))
    taken = outbox.take()
    assert taken is not None
    assert [event.request_id for event in taken[0]] == ["a"]
    assert (outbox.take(), outbox.reason) == (None, "why")


def test_a_replica_refuses_an_id_in_use_without_harm_to_its_owner() -> None:
    engine = FakeEngine(held=True)
    end = ReplicaServer(engine)
    links = SyncReplicaLink(end.address), SyncReplicaLink(end.address)
    request = EngineRequest(request_id="a", prompt_ids=(1,), sampling=SamplingParams(max_tokens=2), seed=2)
    links[0].submit(request)
    engine.wait_for(lambda: engine.num_running == 1)
    links[1].submit(replace(request, seed=9))
    assert [event.error_code for event in links[1].next_events()] == ["ALREADY_EXISTS"]
    links[1].abort("a")
    links[1].close()
    engine.step(2)
    tokens = links[0].next_events()
    while not tokens[-1].terminal:
        tokens += links[0].next_events()
    assert [event.token_id for event in tokens] == [letters(request, 0), letters(request, 1)]
    links[0].close()
    end.stop()
    engine.stop()
