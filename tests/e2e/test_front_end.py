"""Requests over real gRPC on loopback: they stream, end, stop, resume, and leave nothing behind."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from fake_engine import EOS, MODEL, FakeEngine, expected, script, served, serving
from headway.core import errors
from headway.core.request import FinishReason
from headway.core.sampling import SamplingParams
from headway.rpc.v1 import control_pb2, inference_pb2, inference_pb2_grpc
from headway.serving.client import AsyncClient, Client
from headway.serving.output import Delta


def test_text_streams_in_deltas_and_ends_once() -> None:
    async def check() -> None:
        async with serving(FakeEngine()) as (server, _), AsyncClient(server.address) as client:
            params = SamplingParams(max_tokens=9, seed=3, logprobs=0)
            deltas = [delta async for delta in client.stream("Once", params)]
            assert "".join(delta.text for delta in deltas) == expected(3, 9)
            assert [delta.terminal for delta in deltas] == [False] * (len(deltas) - 1) + [True]
            assert deltas[-1].finish_reason == FinishReason.LENGTH
            assert (deltas[-1].num_prompt_tokens, deltas[-1].num_output_tokens) == (4, 9)
            assert [entry[0].token_id for delta in deltas for entry in delta.logprobs] == [
                token for delta in deltas for token in delta.token_ids
            ]

    asyncio.run(check())


def test_each_step_reaches_the_client_before_the_next() -> None:
    async def check() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as (server, _), AsyncClient(server.address) as client:
            stream = client.stream("Once", SamplingParams(max_tokens=3, seed=0))
            texts = []
            for _ in range(3):
                engine.step()
                texts.append((await anext(stream)).text)
            assert "".join(texts) == expected(0, 3)
            assert all(len(text) == 1 for text in texts)

    asyncio.run(check())


def test_n_completions_use_consecutive_seeds_in_one_stream() -> None:
    async def check() -> None:
        async with serving(FakeEngine()) as (server, _), AsyncClient(server.address) as client:
            answer = await client.generate([1, 2, 3], SamplingParams(n=3, max_tokens=5, seed=11))
            assert isinstance(answer, list)
            assert [(c.index, c.text) for c in answer] == [(i, expected(11 + i, 5)) for i in range(3)]

    asyncio.run(check())


def test_a_seed_is_drawn_and_told_where_none_is_given() -> None:
    async def check() -> None:
        engine = FakeEngine()
        async with serving(engine) as (server, _), grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
            call = stub.Generate(inference_pb2.GenerateRequest(text="x"))
            first = await call.read()
            assert first.accepted.request_id
            await call.read()  # a token: so the engine has the request
            assert first.accepted.seed == engine.submitted[0].seed
            call.cancel()

    asyncio.run(check())


def test_a_stop_string_across_tokens_is_cut_and_stops_the_engine() -> None:
    async def check() -> None:
        engine = FakeEngine(script("to be or not to be, that is"), held=True)
        async with serving(engine) as (server, _), AsyncClient(server.address) as client:
            engine.step(12)
            params = SamplingParams(max_tokens=40, stop=("or not", "zzz"))
            answer = await client.generate_all("x", params)
            assert (answer[0].text, answer[0].finish_reason) == ("to be ", FinishReason.STOP)
            engine.wait_for(lambda: engine.aborted == [engine.submitted[0].request_id])

    asyncio.run(check())


def test_the_end_of_sequence_ends_the_text_and_is_not_in_it() -> None:
    async def check() -> None:
        async with serving(FakeEngine(script("né €"))) as (server, _), AsyncClient(server.address) as client:
            answer = (await client.generate_all("x"))[0]
            assert (answer.text, answer.finish_reason) == ("né €", FinishReason.STOP)
            assert answer.token_ids == (*MODEL.encode("né €"), EOS)

    asyncio.run(check())


def test_a_resumed_request_goes_on_behind_the_tokens_delivered() -> None:
    async def check() -> None:
        async with serving(FakeEngine()) as (server, _), AsyncClient(server.address) as client:
            params = SamplingParams(max_tokens=8, seed=5, stop=(expected(5, 8)[4:6],))
            whole = (await client.generate_all("x", params))[0]
            rest = (await client.generate_all("x", params, resume_token_ids=whole.token_ids[:3]))[0]
            assert whole.token_ids[3:] == rest.token_ids
            assert whole.text == expected(5, 3) + rest.text
            done = SamplingParams(max_tokens=3, seed=5)
            end = (await client.generate_all("x", done, resume_token_ids=whole.token_ids[:3]))[0]
            assert (end.token_ids, end.finish_reason) == ((), FinishReason.LENGTH)

    asyncio.run(check())


def test_closing_the_stream_aborts_the_sequence_in_the_engine() -> None:
    async def check() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as (server, _), AsyncClient(server.address) as client:
            stream = client.stream("x", SamplingParams(n=2, max_tokens=50))
            engine.step()
            await anext(stream)
            await stream.aclose()
            await asyncio.to_thread(engine.wait_for, lambda: len(engine.aborted) == 2)
            assert engine.num_running == 0
            assert server.router.num_in_flight == 0

    asyncio.run(check())


def test_a_client_that_vanishes_leaves_nothing_running() -> None:
    async def check() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as (server, _):
            client = AsyncClient(server.address)
            stream = client.stream("x", SamplingParams(max_tokens=50))
            engine.step()
            await anext(stream)
            await client.close()
            await asyncio.to_thread(engine.wait_for, lambda: len(engine.aborted) == 1)

    asyncio.run(check())


def test_a_deadline_ends_the_call_and_aborts_the_sequence() -> None:
    async def check() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as (server, _), AsyncClient(server.address) as client:
            message = rf"^{server.address} did not end the call within timeout_s \(0\.3 s\)$"
            with pytest.raises(errors.DeadlineExceeded, match=message):
                await client.generate("x", SamplingParams(max_tokens=50), timeout_s=0.3)
            await asyncio.to_thread(engine.wait_for, lambda: len(engine.aborted) == 1)
            async with AsyncClient(server.address, timeout_s=0.2) as hasty:
                with pytest.raises(errors.DeadlineExceeded, match=r"within timeout_s \(0\.2 s\)$"):
                    await hasty.generate("x")
            await asyncio.to_thread(engine.wait_for, lambda: len(engine.aborted) == 2)

    asyncio.run(check())


def test_abort_matches_exactly_and_knows_what_has_ended() -> None:
    async def check() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as (server, _), AsyncClient(server.address) as client:
            stream = client.stream("x", SamplingParams(max_tokens=50, seed=1), request_id="abc")
            engine.step()
            assert (await anext(stream)).text == expected(1, 1)
            with pytest.raises(errors.UnknownRequest):
                await client.abort("ab")
            assert await client.abort("abc") is True
            rest = [delta async for delta in stream]
            assert [delta.finish_reason for delta in rest] == [FinishReason.ABORT]
            assert await client.abort("abc") is False
            await asyncio.to_thread(engine.wait_for, lambda: len(engine.aborted) == 1)

    asyncio.run(check())


def test_abort_answers_with_the_pages_that_it_freed() -> None:
    async def check() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as (server, _), AsyncClient(server.address) as client:
            stream = client.stream("x", SamplingParams(max_tokens=50, n=2), request_id="abc")
            engine.step()
            await anext(stream)
            abort = control_pb2.AbortRequest(request_id="abc")
            reply = await client._control.Abort(abort)
            assert (reply.was_running, reply.num_pages_freed) == (True, 6)  # the engine says 3 of each
            assert engine.num_running == 0
            assert len([delta async for delta in stream]) > 0
            reply = await client._control.Abort(abort)
            assert (reply.was_running, reply.num_pages_freed) == (False, 0)

    asyncio.run(check())


def test_a_request_id_in_use_is_refused_and_free_again_afterwards() -> None:
    async def check() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as (server, _), AsyncClient(server.address) as client:
            stream = client.stream("x", SamplingParams(max_tokens=50), request_id="same")
            engine.step()
            await anext(stream)
            with pytest.raises(errors.DuplicateRequest, match="'same' is in use"):
                await client.generate("y", request_id="same")
            assert await client.abort("same")
            assert [delta.terminal async for delta in stream] == [True]
            await asyncio.to_thread(engine.wait_for, lambda: len(engine.aborted) == 1)
            engine.step(2)
            await client.generate("y", SamplingParams(max_tokens=2), request_id="same")

    asyncio.run(check())


def test_a_full_queue_is_refused_as_overloaded() -> None:
    async def check() -> None:
        engine = FakeEngine(held=True)
        async with serving(engine, max_in_flight=2) as (server, _), AsyncClient(server.address) as client:
            stream = client.stream("x", SamplingParams(n=2))
            engine.step()
            await anext(stream)
            with pytest.raises(errors.Overloaded, match="2 of 2 sequences"):
                await client.generate("y")
            await stream.aclose()

    asyncio.run(check())


def test_a_failed_replica_ends_each_completion_with_one_terminal_message_and_others_go_on() -> None:
    async def check() -> None:
        engines = FakeEngine(held=True), FakeEngine(held=True)
        async with serving(*engines) as (server, ends), AsyncClient(server.address) as client:
            streams = [client.stream("x", SamplingParams(max_tokens=3, seed=0)) for _ in engines]
            first, second = (asyncio.create_task(drain(stream)) for stream in streams)
            for engine in engines:
                await asyncio.to_thread(engine.wait_for, lambda e=engine: e.num_running == 1)
            ends[0].stop()
            engines[1].step(3)
            results = [await first, await second]
            failed = next(r for r in results if r[-1].failure)
            fine = next(r for r in results if not r[-1].failure)
            assert [delta.terminal for delta in failed] == [True]
            assert failed[0].failure is not None
            assert (failed[0].failure.code, failed[0].failure.retryable) == ("UNAVAILABLE", True)
            assert "127.0.0.1" not in failed[0].failure.text
            assert "".join(delta.text for delta in fine) == expected(0, 3)
            ends[1].stop()
            with pytest.raises(errors.ReplicaUnavailable):
                await client.generate("x", SamplingParams(max_tokens=1))

    async def drain(stream: AsyncIterator[Delta]) -> list[Delta]:
        deltas = []
        try:
            async for delta in stream:
                deltas.append(delta)
        except errors.ReplicaUnavailable:
            pass
        return deltas

    asyncio.run(check())


def test_a_stop_lets_streams_end_and_ends_the_rest_with_an_answer() -> None:
    async def check(grace_s: float, last: Callable[[Delta], bool]) -> None:
        engine = FakeEngine(held=True)
        async with serving(engine) as (server, _), AsyncClient(server.address) as client:
            stream = client.stream("x", SamplingParams(max_tokens=2))
            engine.step()
            await anext(stream)
            stopping = asyncio.create_task(server.stop(grace_s))
            if grace_s:
                engine.step()
            assert last(await anext(stream))
            await stream.aclose()
            await stopping
            with pytest.raises(errors.ReplicaUnavailable):
                await client.model_info()

    asyncio.run(check(20, lambda delta: delta.finish_reason == FinishReason.LENGTH))
    asyncio.run(check(0, lambda delta: delta.failure is not None and delta.failure.code == "UNAVAILABLE"))


def test_the_client_tells_all_there_is_to_know() -> None:
    with served(FakeEngine()) as address, Client(address, timeout_s=20) as client:
        ids = client.tokenize("né")
        assert client.detokenize(ids) == "né"
        with pytest.raises(errors.InvalidRequest, match=r"^messages\[0\].content must be a text, got None$"):
            client.generate_all([{"role": "user"}])
        with pytest.raises(errors.InvalidRequest, match=r"^prompt must be a text, .* messages, got None$"):
            client.generate_all(None)  # type: ignore[arg-type]
        chat = [{"role": "user", "content": "hi"}]
        assert client.detokenize(client.tokenize(chat)) == "user: hi\n"
        one = client.generate(chat, SamplingParams(max_tokens=1, seed=4))
        assert not isinstance(one, list)
        assert (one.text, one.num_prompt_tokens) == (expected(4, 1), 9)
        assert "".join(d.text for d in client.stream("x", SamplingParams(max_tokens=3, seed=4))) == expected(
            4, 3
        )
        model = client.model_info()
        assert (model.name, model.max_model_len, model.max_prompt_tokens) == ("bytes", 64, 63)
        assert (model.has_tokenizer, model.has_chat_template, list(model.eos_token_ids)) == (
            True,
            True,
            [EOS],
        )
        assert [replica.world_size for replica in client.server_info().replicas] == [2]
        assert [load.num_pages for load in client.load().replicas] == [32]
        with pytest.raises(errors.InvalidRequest, match="timeout_s"):
            client.stream("x", timeout_s=-1)
        with pytest.raises(errors.InvalidRequest, match=r"prompt\[0\]"):
            client.generate([1 << 63])
        with pytest.raises(errors.InvalidRequest, match="valid Unicode"):
            client.generate("\ud800")
