"""Who may talk to a front end, and how it listens: token, TLS, health, reflection, taken ports."""

import asyncio
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from command import run
from fake_engine import INFO, MODEL, FakeEngine, expected, served, serving
from headway.core import errors
from headway.core.request import EngineRequest
from headway.core.sampling import SamplingParams
from headway.link.channel import token_metadata
from headway.link.server import ReplicaServer
from headway.serving.client import Client
from headway.serving.server import Server, ServerConfig


def list_methods(address: str, metadata: Any) -> list[tuple[str, bool]]:
    """Every RPC that reflection names, and whether the client streams."""
    from google.protobuf import descriptor_pb2

    found = []
    with grpc.insecure_channel(address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

        def ask(**question: Any) -> Any:
            request = reflection_pb2.ServerReflectionRequest(**question)
            return next(iter(stub.ServerReflectionInfo(iter([request]), metadata=metadata)))

        for service in ask(list_services="").list_services_response.service:
            answer = ask(file_containing_symbol=service.name).file_descriptor_response
            file = descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_proto[0])
            entry = next(s for s in file.service if f"{file.package}.{s.name}" == service.name)
            found += [(f"/{service.name}/{m.name}", m.client_streaming) for m in entry.method]
    return found


def test_with_a_token_set_every_rpc_but_health_needs_it() -> None:
    with served(FakeEngine(), token="s3cret") as address:
        methods = list_methods(address, token_metadata("s3cret"))
        assert {method.split("/")[1].rpartition(".")[2] for method, _ in methods} == {
            "InferenceService",
            "ControlService",
            "Health",
            "ServerReflection",
        }
        with grpc.insecure_channel(address) as channel:
            for method, _streaming in methods:
                for metadata in ((), token_metadata("wrong"), token_metadata("s3cret1")):
                    if not method.startswith("/grpc.health.v1.Health/"):
                        assert status(channel, method, metadata) == grpc.StatusCode.UNAUTHENTICATED, method
        with Client(address, "s3cret") as client:
            assert client.generate_all("x", SamplingParams(max_tokens=1))[0].text
        with Client(address, "wrong") as client, pytest.raises(errors.Unauthenticated):
            client.server_info()
        with grpc.insecure_channel(address) as channel:
            assert check_health(channel) == health_pb2.HealthCheckResponse.SERVING


def status(channel: grpc.Channel, method: str, metadata: Any) -> grpc.StatusCode:
    call: Any = channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=20)
    with pytest.raises(grpc.RpcError):
        list(call)
    code: grpc.StatusCode = call.code()
    return code


def check_health(channel: grpc.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer: int = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
    return answer


def test_health_follows_the_replicas() -> None:
    async def check() -> None:
        async with serving(FakeEngine()) as (server, ends), channel_to(server) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            service = "headway.rpc.v1.InferenceService"
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
            while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
                pass
            await asyncio.to_thread(ends[0].stop, "step 3 failed: rank 1: gone")
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert server.lost.is_set()
            assert "step 3 failed: rank 1: gone" in str(server.loss), "the operator is told why"
            watch.cancel()

    def channel_to(server: Server) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(server.address)

    asyncio.run(check())


def test_a_taken_port_is_an_error_that_names_it() -> None:
    async def check(address: str) -> None:
        with pytest.raises(errors.StartError, match=f"cannot listen on {address}: Address already in use"):
            await Server.start(MODEL, [], ServerConfig(address=address))

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        asyncio.run(check(f"127.0.0.1:{taken.getsockname()[1]}"))
    with served(FakeEngine()) as address, pytest.raises(errors.StartError, match=address):
        ReplicaServer(FakeEngineInfo(), address=address)


class FakeEngineInfo:
    """An EnginePort that is never asked."""

    info = INFO

    def submit(self, request: EngineRequest) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def set_listener(self, listener: object) -> None: ...


def test_tls_is_offered_and_a_stranger_is_not_believed(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    for name in ("own", "other"):
        words = "req -x509 -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run(["openssl", *words.split(), *files], cwd=tmp_path, check=True, capture_output=True)
    tls = {"tls_cert": tmp_path / "own.pem", "tls_key": tmp_path / "own.key"}
    with served(FakeEngine(), **tls) as address:
        with Client(address, tls_ca=tmp_path / "own.pem") as client:
            assert client.model_info().name == "bytes"
        to = ("--target", address, "--tls-ca", "own.pem")
        ran = run("generate", "x", *to, "--max-tokens=3", "--seed=1", cwd=tmp_path)
        assert (ran.code, ran.out, ran.err) == (0, expected(1, 3) + "\n", "")
        ran = run("chat", *to, "--max-tokens=3", cwd=tmp_path, stdin="hi\n")
        assert (ran.code, len(ran.out), ran.err) == (0, 4, "")
        with Client(address, tls_ca=tmp_path / "other.pem") as client, pytest.raises(errors.HeadwayError):
            client.model_info()
        with Client(address) as client, pytest.raises(errors.ReplicaUnavailable):
            client.model_info()


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    with Client(target) as client, pytest.raises(errors.ReplicaUnavailable, match=target):
        client.generate("x")


def test_a_proxy_in_the_environment_is_not_asked_for_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # where nobody listens
    with served(FakeEngine()) as address, Client(address) as client:
        assert client.generate_all("x", SamplingParams(max_tokens=1))[0].text


def test_what_is_no_certificate_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    config = ServerConfig(address="127.0.0.1:0", tls_cert=junk, tls_key=junk)

    async def start() -> None:
        await Server.start(MODEL, [], config)

    with pytest.raises(errors.StartError, match=r"tls_cert and tls_key must be .* got .*junk\.pem"):
        asyncio.run(start())
