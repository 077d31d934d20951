"""`headway serve` for real: the bundled model on two Ray shards, asked over gRPC by every kind of client."""

import asyncio
import itertools
import json
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from command import argv, environment, run
from headway import AsyncClient, Client, SamplingParams
from headway.core.errors import DeadlineExceeded, ReplicaUnavailable, UnknownRequest
from headway.core.request import FinishReason
from headway.model.folder import resolve
from headway.serving.output import Delta

LINE = "ROMEO:\nBut, soft! what light through yonder window breaks?\n"
LINES = [LINE, "JULIET:\nO", "First Citizen:\nBefore we proceed", "KING HENRY V:\nOnce more unto the breach,"]
NUM_PAGES = 256
GREEDY = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
LONG = SamplingParams(max_tokens=900, ignore_eos=True, seed=1)  # seconds of work, unless it is ended
GONE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server, and every process below it as it was once the server was ready."""

    process: "subprocess.Popen[str]"
    address: str
    below: list[psutil.Process]
    said: str
    shared_memory: set[str]

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; the exit code, and what it said on stdout since."""
        self.process.send_signal(number)
        said = self.process.communicate(timeout=60)[0]
        return self.process.returncode, said

    def survivors(self) -> list[psutil.Process]:
        """Processes below it that are there GONE_S later."""
        return psutil.wait_procs(self.below, timeout=GONE_S)[1]


@contextmanager
def serve(cwd: Path) -> Iterator[Served]:
    shared_memory = shared_files()
    words = ("serve", "demo", "--tp=2", "--device=cpu", "--grpc=127.0.0.1:0", f"--num-pages={NUM_PAGES}")
    process = subprocess.Popen(
        argv(*words), cwd=cwd, env=environment(cwd), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if found := re.fullmatch(r"Serving demo at (\S+) \(gRPC\)\n", line):
                break
        else:
            raise AssertionError(f"the server ended: {process.communicate()[1]}")
        below = psutil.Process(process.pid).children(recursive=True)
        yield Served(process=process, address=found[1], below=below, said=said, shared_memory=shared_memory)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for the module. The test that stops it comes last."""
    with serve(tmp_path_factory.mktemp("serve")) as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    with Client(server.address, timeout_s=60) as client:
        yield client


@pytest.fixture(scope="module")
def oracle() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(resolve("demo"), dtype=torch.float32).eval()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come about within 20 s"
        time.sleep(0.02)


def idle(client: Client) -> bool:
    """Whether nothing runs or waits and every page is free, as the server and its replica tell."""
    load = client.load()
    (replica,) = load.replicas
    return (load.num_in_flight, replica.num_running, replica.num_waiting, replica.free_pages) == (
        0,
        0,
        0,
        NUM_PAGES,
    )


def test_it_says_how_it_started_what_each_rank_holds_and_where_it_listens(server: Served) -> None:
    for word in ("Start-up, seconds", "spawn", "load", "Memory of rank 0.0", "Memory of rank 0.1"):
        assert word in server.said
    assert server.said.count(f": {NUM_PAGES} pages (6 MiB) are what num_pages asks for") == 2


def test_greedy_tokens_equal_those_of_transformers(client: Client, oracle: LlamaForCausalLM) -> None:
    for line in LINES:
        prompt = client.tokenize(line)
        answer = client.generate_all(line, GREEDY)[0]
        assert answer.token_ids == greedy(oracle, prompt), line
        assert (answer.num_prompt_tokens, answer.finish_reason) == (len(prompt), FinishReason.LENGTH)
        assert answer.text == client.detokenize(answer.token_ids)


def greedy(oracle: LlamaForCausalLM, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """One forward pass after another, so that no generation setting is in between."""
    ids = torch.tensor([prompt])
    for _ in range(GREEDY.max_tokens):
        ids = torch.cat([ids, logits_after(oracle, ids).argmax(-1, keepdim=True)], dim=1)
    return tuple(ids[0, len(prompt) :].tolist())


@torch.no_grad()
def logits_after(oracle: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    return oracle(input_ids=ids).logits[:, -1]


def test_text_streams_in_several_deltas_and_ends_once(client: Client) -> None:
    deltas = list(client.stream(LINE, GREEDY))
    assert len(deltas) > 1
    assert [delta.terminal for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert "".join(delta.text for delta in deltas) == client.generate_all(LINE, GREEDY)[0].text
    assert sum(len(delta.token_ids) for delta in deltas) == deltas[-1].num_output_tokens == GREEDY.max_tokens


def test_the_same_seed_gives_the_same_text_and_completion_i_of_n_uses_seed_plus_i(client: Client) -> None:
    def sample(seed: int, n: int = 1) -> list[str]:
        params = SamplingParams(temperature=1.2, top_p=0.95, max_tokens=24, seed=seed, n=n)
        return [answer.text for answer in client.generate_all(LINE, params)]

    two = sample(7, n=2)
    assert two == [*sample(7), *sample(8)]
    assert two[0] != two[1]


def test_a_stop_string_ends_the_text_before_it(client: Client) -> None:
    whole = client.generate_all(LINE, GREEDY)[0].text
    stop = whole[20:24]
    answer = client.generate_all(LINE, SamplingParams(temperature=0, max_tokens=32, stop=(stop,)))[0]
    assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], FinishReason.STOP)


def test_logprobs_are_those_of_the_model(client: Client, oracle: LlamaForCausalLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=5)
    answer = client.generate_all(LINE, params)[0]
    context = list(client.tokenize(LINE))
    for token, entry in zip(answer.token_ids, answer.logprobs, strict=True):
        truth = logits_after(oracle, torch.tensor([context]))[0].log_softmax(-1)
        assert [one.token_id for one in entry] == [token, *truth.topk(5).indices.tolist()]
        for one in entry:
            assert one.logprob == pytest.approx(truth[one.token_id].item(), abs=1e-3)
        context.append(token)


def test_eight_streams_at_once_give_what_each_gives_alone(server: Served, client: Client) -> None:
    prompts = [line + more for line in LINES for more in ("", "The ")]
    order: list[int] = []

    async def one(client: AsyncClient, index: int) -> str:
        text = ""
        async for delta in client.stream(prompts[index], GREEDY):
            order.append(index)
            text += delta.text
        return text

    async def together() -> list[str]:
        async with AsyncClient(server.address, timeout_s=60) as client:
            return await asyncio.gather(*(one(client, index) for index in range(len(prompts))))

    texts = asyncio.run(together())
    num_turns = sum(one != next_one for one, next_one in itertools.pairwise(order))
    assert num_turns > len(prompts), "one stream after the other"
    assert texts == [client.generate_all(prompt, GREEDY)[0].text for prompt in prompts]


def test_a_reader_who_leaves_gives_its_pages_back(client: Client) -> None:
    stream = client.stream(LINE, LONG)
    next(stream)
    assert not idle(client)
    stream.close()  # type: ignore[attr-defined]
    eventually(lambda: idle(client))


def test_a_deadline_ends_the_request_and_gives_its_pages_back(client: Client) -> None:
    with pytest.raises(DeadlineExceeded, match=r"did not end the call within timeout_s \(0\.3 s\)"):
        client.generate(LINE, LONG, timeout_s=0.3)
    eventually(lambda: idle(client))


def test_abort_ends_a_request_by_its_id_and_by_no_other(server: Served, client: Client) -> None:
    async def check() -> list[Delta]:
        async with AsyncClient(server.address, timeout_s=60) as other:
            stream = other.stream(LINE, LONG, request_id="mine")
            deltas = [await anext(stream)]
            with pytest.raises(UnknownRequest, match="'min' is not known"):
                await other.abort("min")
            assert await other.abort("mine") is True
            (load,) = (await other.load()).replicas
            assert (load.num_running, load.free_pages) == (0, load.num_pages)
            deltas += [delta async for delta in stream]
            assert await other.abort("mine") is False
            return deltas

    deltas = asyncio.run(check())
    assert deltas[-1].finish_reason == FinishReason.ABORT
    assert 0 < deltas[-1].num_output_tokens < LONG.max_tokens
    eventually(lambda: idle(client))


def test_it_tells_what_it_serves_and_on_what(client: Client) -> None:
    model = client.model_info()
    assert (model.name, model.vocab_size, model.max_model_len, model.max_prompt_tokens) == (
        "demo",
        2000,
        1024,
        1023,
    )
    assert (model.has_tokenizer, model.has_chat_template, list(model.eos_token_ids)) == (True, True, [0])
    (replica,) = client.server_info().replicas
    assert (replica.world_size, replica.device, replica.dtype) == (2, "cpu", "float32")
    assert (replica.page_size, replica.num_pages) == (16, NUM_PAGES)


def test_messages_become_a_prompt_by_the_models_own_template(client: Client) -> None:
    messages = [{"role": "user", "content": "Who goes there?"}]
    assert client.detokenize(client.tokenize(messages)) == "USER:\nWho goes there?\n\nHEADWAY:\n"
    assert client.generate_all(messages, GREEDY)[0].num_prompt_tokens == len(client.tokenize(messages))


def test_health_and_reflection_answer_without_a_client_of_ours(server: Served) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "headway.rpc.v1.InferenceService", "headway.rpc.v1.ControlService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]))
        assert {service.name for service in answer.list_services_response.service} == {
            "headway.rpc.v1.InferenceService",
            "headway.rpc.v1.ControlService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


def test_the_generate_command_asks_it_for_text(server: Served, client: Client, tmp_path: Path) -> None:
    words = ("generate", LINE, "--target", server.address, "--temperature=0", "--max-tokens=12")
    expected = client.generate_all(LINE, SamplingParams(temperature=0, max_tokens=12))[0]
    plain = run(*words, cwd=tmp_path)
    assert (plain.code, plain.out, plain.err) == (0, expected.text + "\n", "")
    told = json.loads(run(*words, "--json", cwd=tmp_path).out)
    assert (told["text"], tuple(told["token_ids"])) == (expected.text, expected.token_ids)


def test_the_chat_command_keeps_a_conversation_with_it(
    server: Served, client: Client, tmp_path: Path
) -> None:
    words = ("chat", "--target", server.address, "--temperature=0", "--max-tokens=8")
    messages = []
    for line in ("Who goes there?", "And what would you have?"):
        messages.append({"role": "user", "content": line})
        answer = client.generate_all(messages, SamplingParams(temperature=0, max_tokens=8))[0]
        messages.append({"role": "assistant", "content": answer.text})
    ran = run(*words, cwd=tmp_path, stdin="Who goes there?\n\nAnd what would you have?\n")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "".join(message["content"] + "\n" for message in messages[1::2])


def test_sigterm_ends_a_server_its_streams_and_all_its_processes(server: Served, client: Client) -> None:
    stream = client.stream(LINE, LONG)
    next(stream)
    code, said = server.end(signal.SIGTERM)
    with suppress(ReplicaUnavailable):  # or it was quick enough to finish
        list(stream)
    assert (code, said.splitlines()[-1]) == (0, "Stopped; nothing is left running")
    assert server.survivors() == []
    assert forgotten_files() <= server.shared_memory
    host, _, port = server.address.rpartition(":")
    with socket.create_server((host, int(port))):
        pass


def forgotten_files() -> set[str]:
    """Files in /dev/shm that no process has mapped: what somebody else is using is not ours to count."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            mapped |= set(re.findall(r"/dev/shm/(\S+)", maps.read_text()))
    return shared_files() - mapped


def shared_files() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def test_a_lost_rank_ends_the_server_whose_last_line_names_rank_and_step(tmp_path: Path) -> None:
    with serve(tmp_path) as served, Client(served.address, timeout_s=60) as client:
        shards = [process for process in served.below if process.name() == "ray::ShardActor"]
        follower = min(shards, key=num_listening)  # only the leader has a store and its end of the link
        stream = client.stream(LINE, LONG)
        next(stream)
        follower.kill()
        with pytest.raises(ReplicaUnavailable, match=r"step [0-9]+ failed: rank 1 left the step channel"):
            list(stream)
        err = served.process.communicate(timeout=60)[1]
        assert served.process.returncode == 1
        assert re.fullmatch(
            r"headway: every replica is lost; .*step [0-9]+ failed: rank 1 left.*", err.splitlines()[-1]
        )
        assert served.survivors() == []


def num_listening(process: psutil.Process) -> int:
    connections = process.net_connections(kind="tcp")
    return sum(connection.status == psutil.CONN_LISTEN for connection in connections)


def test_sigkill_of_the_server_leaves_no_process_behind(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        names = {process.name() for process in served.below}
        assert {"raylet", "gcs_server", "ray::ShardActor"} <= names
        code, _ = served.end(signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert served.survivors() == []
        assert forgotten_files() <= served.shared_memory


def test_a_forgotten_file_in_shared_memory_would_be_found_out() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        assert Path(file.name).name in forgotten_files()
