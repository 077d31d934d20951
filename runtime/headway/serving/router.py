"""Which replica runs what, and the truth of every request in flight.

A replica can die at any time. What is needed to go on elsewhere is kept here: the sequence as it was
submitted and, in its Output, the tokens delivered and the state of the stop strings.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headway.core.errors import DuplicateRequest, HeadwayError, Overloaded, ReplicaUnavailable, UnknownRequest
from headway.core.request import EngineRequest, FinishReason, Load, ReplicaInfo, TokenEvent
from headway.serving.output import Delta, Output
from headway.serving.sequences import max_prompt_tokens
from headway.serving.stream import DeltaStream
from headway.serving.tokenizer import TextTokenizer

NUM_ENDED_KEPT = 10_000  # request ids that Abort still knows after their end
ABORT_TIMEOUT_S = 1.0  # for replicas to tell that pages are free: at the end of their running step

log = logging.getLogger(__name__)


class Replica(Protocol):
    """`headway.link.client.ReplicaLink`, as the router needs it; iterated for the events of each step."""

    @property
    def info(self) -> ReplicaInfo: ...
    @property
    def load(self) -> Load: ...
    def submit(self, request: EngineRequest) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def __aiter__(self) -> AsyncIterator[Sequence[TokenEvent]]: ...
    async def close(self) -> None: ...


@dataclass(kw_only=True, eq=False)
class _Member:
    """A replica that takes work, and the sequences it runs."""

    replica: Replica
    running: "dict[str, _Sequence]"
    aborting: dict[str, "asyncio.Future[int | None]"] = field(default_factory=dict)

    @property
    def busyness(self) -> int:
        """What it said last, or what we have given it since, whichever is more."""
        load = self.replica.load
        return max(load.num_running + load.num_waiting, len(self.running))

    def abort(self, request_id: str) -> "asyncio.Future[int | None]":
        """Resolved with the number of pages freed when the replica tells of the end; None if it does not."""
        self.aborting[request_id] = told = asyncio.get_running_loop().create_future()
        self.replica.abort(request_id)
        return told

    def note_end(self, request_id: str, num_pages_freed: int | None) -> None:
        told = self.aborting.pop(request_id, None)
        if told is not None and not told.done():
            told.set_result(num_pages_freed)


@dataclass(frozen=True, kw_only=True)
class Aborted:
    """num_pages_freed: None where a replica has not told."""

    was_running: bool
    num_pages_freed: int | None


@dataclass(kw_only=True, eq=False)
class _Sequence:
    request: EngineRequest
    output: Output
    stream: DeltaStream
    member: _Member


class Router:
    """Lives on one asyncio loop.

    max_in_flight: sequences accepted and not ended; more are refused as Overloaded.
    on_change: called when the first replica comes and when the last one goes.
    """

    def __init__(self, *, max_in_flight: int = 1024, on_change: Callable[[], None] = lambda: None) -> None:
        self._max_in_flight = max_in_flight
        self._on_change = on_change
        self._members: list[_Member] = []
        self._followers: set[asyncio.Task[None]] = set()
        self._requests: dict[str, tuple[DeltaStream, list[_Sequence]]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self.loss: str | None = None  # why the replica that was lost last is gone; not for clients

    def add(self, replica: Replica) -> None:
        """Give `replica` work from now on, until it fails."""
        member = _Member(replica=replica, running={})
        self._members.append(member)
        follower = asyncio.create_task(self._follow(member))
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)
        self._on_change()

    @property
    def replicas(self) -> list[Replica]:
        return [member.replica for member in self._members]

    @property
    def num_in_flight(self) -> int:
        return sum(len(member.running) for member in self._members)

    @property
    def info(self) -> ReplicaInfo:
        """Of the replica with the least room, so that what fits it fits all. Raises ReplicaUnavailable."""
        if not self._members:
            raise ReplicaUnavailable("no replica is ready")
        return min((member.replica.info for member in self._members), key=max_prompt_tokens)

    def check_room(self, n: int) -> None:
        """Raise Overloaded unless `n` more sequences may be accepted."""
        if self.num_in_flight + n > self._max_in_flight:
            full = f"{self.num_in_flight} of {self._max_in_flight} sequences are in flight"
            raise Overloaded(f"{full}, {n} more do not fit; try again later")

    def open(
        self, request_id: str, sequences: Sequence[EngineRequest], tokenizer: TextTokenizer | None
    ) -> DeltaStream:
        """Start `sequences`; their deltas come in the stream. `close` it when its reader goes.

        Raises DuplicateRequest, Overloaded, ReplicaUnavailable; nothing was started then, whatever it raises.
        """
        if request_id in self._requests:
            raise DuplicateRequest(f"request_id {request_id!r} is in use")
        self.check_room(len(sequences))
        info = self.info
        stream = DeltaStream(request_id, sequences[0].seed, len(sequences))
        outputs = [Output(request, tokenizer, index) for index, request in enumerate(sequences)]
        started: list[_Sequence] = []
        self._requests[request_id] = stream, started  # nothing below raises, so the id is given back
        for request, output in zip(sequences, outputs, strict=True):
            reason = output.finish_reason
            if len(request.prompt_ids) + len(request.output_ids) > max_prompt_tokens(info):
                reason = reason or FinishReason.LENGTH
            if reason is not None:  # all of it had been delivered but the end
                stream.put(output.end(reason))
                continue
            member = min(self._members, key=lambda member: member.busyness)
            sequence = _Sequence(request=request, output=output, stream=stream, member=member)
            member.running[request.request_id] = sequence
            started.append(sequence)
            self._submit(sequence)
        return stream

    def close(self, request_id: str) -> None:
        """Forget the request; what still runs of it is aborted in its replicas. Safe to call twice."""
        stream_and_sequences = self._requests.pop(request_id, None)
        if stream_and_sequences is None:
            return
        for sequence in stream_and_sequences[1]:
            if self._remove(sequence):
                sequence.member.replica.abort(sequence.request.request_id)
        self._ended[request_id] = None
        while len(self._ended) > NUM_ENDED_KEPT:
            self._ended.popitem(last=False)

    async def abort(self, request_id: str) -> Aborted:
        """End a request's completions with reason ABORT; return when their pages are free, or soon after.

        What had ended is not aborted again. Raises UnknownRequest.
        """
        if request_id not in self._requests and request_id not in self._ended:
            raise UnknownRequest(f"request_id {request_id!r} is not known")
        _, sequences = self._requests.get(request_id, (None, []))
        told = []
        for sequence in sequences:
            if self._remove(sequence):
                told.append(sequence.member.abort(sequence.request.request_id))
                sequence.stream.put(sequence.output.end(FinishReason.ABORT))
        return Aborted(was_running=bool(told), num_pages_freed=await _sum(told))

    async def stop(self) -> None:
        """Part from every replica; what still runs ends with UNAVAILABLE."""
        followers = list(self._followers)
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
        for member in self._members:  # of a follower that had not begun
            await member.replica.close()

    def _submit(self, sequence: _Sequence) -> None:
        try:
            sequence.member.replica.submit(sequence.request)
        except Exception as error:  # a replica that is gone, or a bug, which must not cost the others
            self._end(sequence, sequence.output.fail(error))

    async def _follow(self, member: _Member) -> None:
        """Take the replica's events until it fails; then end what it ran."""
        try:
            async for events in member.replica:
                for event in events:
                    self._take(member, event)
        except HeadwayError as error:
            self.loss = str(error)
            log.warning("lost a replica: %s", error)
        except Exception as error:
            self.loss = type(error).__name__
            log.exception("lost a replica")
        finally:
            self._members.remove(member)
            for request_id in list(member.aborting):
                member.note_end(request_id, None)
            for sequence in list(member.running.values()):
                lost = ReplicaUnavailable("the replica that ran this request is gone; send it again")
                self._end(sequence, sequence.output.fail(lost))
            self._on_change()
            await member.replica.close()

    def _take(self, member: _Member, event: TokenEvent) -> None:
        sequence = member.running.get(event.request_id)
        if sequence is None:  # it was ended here before its replica knew
            if event.terminal:
                member.note_end(event.request_id, event.num_pages_freed)
            return
        try:
            delta = sequence.output.push(event)
        except Exception as error:  # a bug must cost one request, not the replica's other ones
            delta = sequence.output.fail(error)
        if not delta.terminal:
            sequence.stream.put(delta)
            return
        self._end(sequence, delta)
        if not event.terminal:  # a stop string: the engine goes on until it is told
            member.replica.abort(event.request_id)

    def _end(self, sequence: _Sequence, delta: Delta) -> None:
        if self._remove(sequence):
            sequence.stream.put(delta)

    def _remove(self, sequence: _Sequence) -> bool:
        """Whether the sequence was still running."""
        return sequence.member.running.pop(sequence.request.request_id, None) is not None


async def _sum(told: "list[asyncio.Future[int | None]]") -> int | None:
    """None unless all of them tell a number in time."""
    try:
        numbers = await asyncio.wait_for(asyncio.gather(*told), ABORT_TIMEOUT_S)
    except TimeoutError:
        return None
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
