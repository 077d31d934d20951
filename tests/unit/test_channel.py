"""The step channel: frames between leader and followers, who is let in, and plans as bytes."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import ReplicaError, StartError
from headway.core.sampling import SamplingParams
from headway.core.step import Admission, PageGrant, StepPlan
from headway.engine.channel import (
    HELLO,
    LENGTH,
    MAX_FRAME,
    ChannelListener,
    Connection,
    Endpoint,
    broadcast,
    join,
    reports,
)
from headway.engine.codec import decode_plan, encode_plan

TIMEOUT_S = 20.0  # only ever waited out by a failure
SIZES = [0, 1, 3, 4, 5, 70_000, 1_000_003]
KINDS = pytest.mark.parametrize("host", [None, "127.0.0.1"], ids=["unix", "tcp"])


@contextmanager
def channel(host: str | None, num_followers: int) -> Iterator[tuple[list[Connection], list[Connection]]]:
    """The leader's connections and the followers', by rank; the followers join last rank first."""
    listener = ChannelListener(host)
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(listener.accept, num_followers, TIMEOUT_S)
        followers = [
            join(listener.endpoint, listener.secret, rank, TIMEOUT_S) for rank in range(num_followers, 0, -1)
        ][::-1]
        leader = accepted.result()
        for connection in (*leader, *followers):
            stack.callback(connection.close)
        yield leader, followers


def raw(endpoint: Endpoint) -> socket.socket:
    return endpoint.connect(TIMEOUT_S)


# Frames


@KINDS
def test_frames_of_any_size_arrive_whole_and_in_order_both_ways(host: str | None) -> None:
    frames = [bytes(number % 251 for number in range(size)) for size in SIZES]
    with channel(host, 1) as ([leader], [follower]):
        for sender, receiver in ((leader, follower), (follower, leader)):
            thread = threading.Thread(target=lambda end=sender: [end.send(frame) for frame in frames])
            thread.start()
            assert [receiver.receive(TIMEOUT_S) for _ in frames] == frames
            thread.join()


@KINDS
def test_the_leaders_connections_are_in_the_order_of_their_ranks(host: str | None) -> None:
    with channel(host, 3) as (leader, followers):
        for rank, follower in enumerate(followers, start=1):
            follower.send(f"from {rank}".encode())
        assert [connection.receive(TIMEOUT_S) for connection in leader] == [b"from 1", b"from 2", b"from 3"]
        broadcast(leader, b"plan")
        assert [follower.receive(TIMEOUT_S) for follower in followers] == [b"plan"] * 3


@KINDS
def test_a_closed_peer_is_none_after_the_frames_that_were_sent_before(host: str | None) -> None:
    with channel(host, 1) as ([leader], [follower]):
        follower.send(b"last words")
        follower.close()
        assert [leader.receive(TIMEOUT_S) for _ in range(3)] == [b"last words", None, None]


def test_a_frame_that_breaks_off_is_none() -> None:
    ours, theirs = socket.socketpair()
    with closing(Connection(ours)) as connection, theirs:
        theirs.sendall(LENGTH.pack(10) + b"12345")
        theirs.shutdown(socket.SHUT_WR)
        assert connection.receive(TIMEOUT_S) is None


def test_closing_wakes_whoever_waits_for_a_frame() -> None:
    with channel(None, 1) as ([leader], [follower]), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(end.receive) for end in (leader, follower)]
        leader.close()
        leader.close()
        assert [wait.result(TIMEOUT_S) for wait in waiting] == [None, None]


def test_a_timeout_in_the_middle_of_a_frame_loses_nothing() -> None:
    ours, theirs = socket.socketpair()
    with closing(Connection(ours)) as connection, theirs:
        theirs.sendall(LENGTH.pack(6) + b"abc")
        with pytest.raises(TimeoutError):
            connection.receive(0.01)
        theirs.sendall(b"def" + LENGTH.pack(0))
        assert [connection.receive(TIMEOUT_S) for _ in range(2)] == [b"abcdef", b""]


def test_a_frame_larger_than_the_limit_is_refused_by_its_length_alone() -> None:
    ours, theirs = socket.socketpair()
    with closing(Connection(ours)) as connection, theirs:
        theirs.sendall(LENGTH.pack(MAX_FRAME + 1))
        with pytest.raises(ReplicaError, match=rf"at most {MAX_FRAME} bytes, got {MAX_FRAME + 1}"):
            connection.receive(TIMEOUT_S)


# Who is let in


STRANGERS = {
    "wrong secret": HELLO.pack(bytes(32), 1),
    "too short": b"x" * (HELLO.size - 1),
    "an HTTP client": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "silent": b"",
}


@KINDS
@pytest.mark.parametrize("hello", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_stranger_is_turned_away_and_takes_no_ranks_place(host: str | None, hello: bytes) -> None:
    listener = ChannelListener(host)
    with raw(listener.endpoint) as stranger, ThreadPoolExecutor(1) as pool:
        stranger.sendall(hello)
        stranger.shutdown(socket.SHUT_WR)
        accepted = pool.submit(listener.accept, 1, TIMEOUT_S)
        with closing(join(listener.endpoint, listener.secret, 1, TIMEOUT_S)) as follower:
            [leader] = accepted.result()
            leader.send(b"plan")
            assert follower.receive(TIMEOUT_S) == b"plan"
            assert gone(stranger)
            leader.close()


@pytest.mark.parametrize("rank", [0, 3, (1 << 32) - 1])
def test_a_rank_that_is_not_awaited_is_turned_away_though_it_knows_the_secret(rank: int) -> None:
    listener = ChannelListener(None)
    with raw(listener.endpoint) as stranger:
        stranger.sendall(HELLO.pack(listener.secret, rank))
        with pytest.raises(StartError, match=r"ranks \[1, 2\] did not join"):
            listener.accept(2, 0.1)
        assert gone(stranger)


def test_of_two_that_come_as_the_same_rank_the_first_stays() -> None:
    listener = ChannelListener(None)
    with ThreadPoolExecutor(1) as pool:
        first = join(listener.endpoint, listener.secret, 1, TIMEOUT_S)
        second = join(listener.endpoint, listener.secret, 1, TIMEOUT_S)
        accepted = pool.submit(listener.accept, 2, TIMEOUT_S)
        assert second.receive(TIMEOUT_S) is None
        third = join(listener.endpoint, listener.secret, 2, TIMEOUT_S)
        leader = accepted.result()
        broadcast(leader, b"plan")
        assert [first.receive(TIMEOUT_S), third.receive(TIMEOUT_S)] == [b"plan", b"plan"]
        for connection in (*leader, first, second, third):
            connection.close()


def test_a_stranger_that_says_nothing_holds_nobody_up_for_longer_than_the_deadline() -> None:
    listener = ChannelListener(None)
    with raw(listener.endpoint) as stranger:
        with pytest.raises(StartError, match=r"ranks \[1\] did not join the step channel in 0\.2 s"):
            listener.accept(1, 0.2)
        assert gone(stranger)


def test_ranks_that_do_not_come_are_named_and_those_that_came_are_let_go() -> None:
    listener = ChannelListener(None)
    with closing(join(listener.endpoint, listener.secret, 2, TIMEOUT_S)) as early:
        with pytest.raises(StartError, match=r"ranks \[1, 3\] did not join the step channel in 0\.2 s"):
            listener.accept(3, 0.2)
        assert early.receive(TIMEOUT_S) is None


def test_a_leader_that_is_not_there_is_an_error_that_names_the_rank() -> None:
    listener = ChannelListener("127.0.0.1")
    listener.close()
    for endpoint in (listener.endpoint, Endpoint(name="headway-nobody")):
        with pytest.raises(StartError, match="rank 2 cannot reach the leader's step channel"):
            join(endpoint, listener.secret, 2, TIMEOUT_S)


def gone(stranger: socket.socket) -> bool:
    try:
        return stranger.recv(1) == b""
    except ConnectionError:
        return True


# Trouble


def test_a_broadcast_names_the_first_rank_that_is_gone() -> None:
    with channel(None, 3) as (leader, followers):
        followers[1].close()
        with pytest.raises(ReplicaError, match="rank 2 left the step channel"):
            broadcast(leader, b"plan")
        assert followers[0].receive(TIMEOUT_S) == b"plan"


def test_reports_of_all_followers_are_collected_within_the_wait() -> None:
    with channel(None, 4) as (leader, followers):
        followers[0].send(b"rank 1: on fire")
        followers[1].close()
        followers[2].send("rank 3: \N{FIRE}".encode()[:-1])  # not quite UTF-8
        assert reports(leader, 0.1) == ["rank 1: on fire", "rank 2 left the step channel", "rank 3: �"]


# Plans as bytes

ids = st.integers(min_value=0, max_value=(1 << 31) - 1)
unit = st.floats(min_value=1e-6, max_value=1)
penalty = st.floats(min_value=-2, max_value=2)
samplings = st.builds(
    SamplingParams,
    temperature=st.floats(min_value=0, max_value=100),
    top_k=st.integers(min_value=0, max_value=1 << 20),
    top_p=unit,
    min_p=unit,
    repetition_penalty=st.floats(min_value=0.01, max_value=100),
    presence_penalty=penalty,
    frequency_penalty=penalty,
    max_tokens=st.integers(min_value=1, max_value=1 << 20),
    stop=st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
    stop_token_ids=st.lists(ids, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    seed=st.none() | st.integers(min_value=0, max_value=(1 << 63) - 1),
    logprobs=st.none() | st.integers(min_value=0, max_value=20),
)


def tuples(element: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(element, max_size=4).map(tuple)


admissions = st.builds(
    Admission,
    row=ids,
    token_ids=tuples(ids),
    num_prompt_tokens=ids,
    sampling=samplings,
    seed=st.integers(min_value=0, max_value=(1 << 63) - 1),
    banned_until_min=tuples(ids),
)
plans = st.builds(
    StepPlan,
    step=st.integers(min_value=0, max_value=(1 << 62)),
    ended=tuples(ids),
    admissions=tuples(admissions),
    grants=tuples(st.builds(PageGrant, row=ids, group=ids, pages=tuples(ids))),
    rows=tuples(ids),
    num_tokens=tuples(ids),
    samples=tuples(st.booleans()),
    digest=st.integers(min_value=0, max_value=(1 << 32) - 1),
)
PLAN = StepPlan(
    step=3,
    admissions=(
        Admission(
            row=0,
            token_ids=(1, 2),
            num_prompt_tokens=2,
            sampling=SamplingParams(stop=("x",)),
            seed=(1 << 63) - 1,
        ),
    ),
    rows=(0,),
    num_tokens=(2,),
    samples=(True,),
)


@given(plans)
def test_a_plan_survives_as_bytes(plan: StepPlan) -> None:
    assert decode_plan(encode_plan(plan)) == plan


@given(st.binary(max_size=200))
def test_bytes_that_are_no_plan_are_refused(data: bytes) -> None:
    with pytest.raises(ReplicaError, match=f"unreadable step plan of {len(data)} bytes"):
        decode_plan(data)


@given(st.data())
def test_a_plan_cut_short_is_refused(data: st.DataObject) -> None:
    whole = encode_plan(PLAN)
    with pytest.raises(ReplicaError, match="unreadable step plan"):
        decode_plan(whole[: data.draw(st.integers(min_value=0, max_value=len(whole) - 1))])


@given(index=st.integers(min_value=0, max_value=len(encode_plan(PLAN)) - 1), value=st.integers(0, 255))
def test_a_plan_with_a_byte_changed_is_refused_or_another_plan(index: int, value: int) -> None:
    data = bytearray(encode_plan(PLAN))
    data[index] = value
    with suppress(ReplicaError):
        assert isinstance(decode_plan(bytes(data)), StepPlan)


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", float("nan")), ("top_p", 2), ("max_tokens", 0), ("stop", [""])]
)
def test_sampling_values_out_of_their_bounds_make_a_plan_unreadable(field: str, value: object) -> None:
    plain = msgspec.msgpack.decode(encode_plan(PLAN))
    plain["admissions"][0]["sampling"][field] = value
    with pytest.raises(ReplicaError, match=rf"unreadable step plan .*{field}"):
        decode_plan(msgspec.msgpack.encode(plain))
