"""A replica on real Ray actors: its tokens, its end, and what is left where it cannot start.

Ray takes seconds to start, so there is one cluster for this file; the last test closes it.
"""

import asyncio
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from checkpoints import Oracle, random_prompts
from driving import make_request, tokens
from headway.cluster.gang import Gang, Replica
from headway.cluster.session import RaySession
from headway.core import env
from headway.core.config import EngineConfig
from headway.core.errors import (
    ConfigError,
    HeadwayError,
    InvalidRequest,
    ModelError,
    ReplicaUnavailable,
    StartError,
    StepMismatch,
)
from headway.core.request import Load, TokenEvent
from headway.link.client import ReplicaLink
from headway.link.sync_client import SyncReplicaLink

WAIT_S = 20.0  # only ever waited out by a failure
NUM_PAGES = 600
CONFIG = EngineConfig(tp=2, device="cpu", num_pages=NUM_PAGES, page_size=4, max_num_tokens=40)
LONG = 250  # tokens that no test waits for


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    with RaySession("local", num_ranks=2) as session:
        yield session


@pytest.fixture(scope="module")
def gang(session: RaySession, gqa: Oracle) -> Iterator[Gang]:
    gang = Gang(session, str(gqa.folder), CONFIG)
    yield gang
    gang.stop()


@pytest.fixture(scope="module")
def replica(gang: Gang) -> Replica:
    return gang.start()


def ranks() -> list[psutil.Process]:
    """The processes of our actors."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(part.startswith("ray::ShardActor") for part in process.cmdline()):
                found.append(process)
    return found


def no_rank_is_left(session: RaySession) -> bool:
    """Whether, in a moment, no actor runs and the cluster's resources are all free again."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        free, total = session.ray.available_resources(), session.ray.cluster_resources()
        if not ranks() and free.get("CPU") == total["CPU"]:
            return True
        time.sleep(0.05)
    return False


def events_of(link: SyncReplicaLink, names: list[str]) -> dict[str, list[TokenEvent]]:
    """What the replica tells of `names` until each has ended, or the link breaks."""
    found: dict[str, list[TokenEvent]] = {name: [] for name in names}
    while not all(events and events[-1].terminal for events in found.values()):
        try:
            told = link.next_events()
        except ReplicaUnavailable:
            break
        for event in told:
            found[event.request_id].append(event)
    return found


# At work


def test_two_actors_continue_sixteen_prompts_as_transformers_does(replica: Replica, gqa: Oracle) -> None:
    prompts = random_prompts([1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 21, 27, 33, 40, 48, 61])
    requests = [make_request(str(len(prompt)), prompt, max_tokens=24) for prompt in prompts]
    link = SyncReplicaLink(replica.target, replica.token)
    for request in requests:
        link.submit(request)
    found = events_of(link, [request.request_id for request in requests])
    link.close()
    for request in requests:
        assert tokens(found[request.request_id]) == gqa.greedy(request.prompt_ids, 24)


def test_a_replica_tells_what_it_is_and_how_long_its_start_took(replica: Replica) -> None:
    assert (replica.info.world_size, replica.info.num_pages) == (2, NUM_PAGES)
    assert list(replica.phases) == ["place", "spawn", "meet", "load", "warm up", "begin"]
    assert replica.target.startswith("127.0.0.1:")


def test_nobody_gets_in_without_the_replicas_token(replica: Replica) -> None:
    for token in (None, "guess"):
        with pytest.raises(ReplicaUnavailable, match="unauthenticated"):
            SyncReplicaLink(replica.target, token)


def test_closing_a_link_frees_the_pages_of_what_came_through_it(replica: Replica) -> None:
    async def main() -> tuple[Load, Load]:
        watcher = await ReplicaLink.connect(replica.target, replica.token)
        link = SyncReplicaLink(replica.target, replica.token)
        for n in range(8):
            link.submit(make_request(str(n), (n + 1, 2, 3), max_tokens=LONG))
        async with asyncio.timeout(WAIT_S):
            while watcher.load.num_running < 8:
                await anext(watcher)
            busy = watcher.load
            link.close()
            while watcher.load.num_running:
                await anext(watcher)
        await watcher.close()
        return busy, watcher.load

    busy, idle = asyncio.run(main())
    assert busy.free_pages < NUM_PAGES
    assert (idle.free_pages, idle.num_waiting) == (NUM_PAGES, 0)
    assert idle.step - busy.step < LONG - 1, "they were ended, not finished"


def test_a_killed_follower_ends_every_stream_at_once_and_the_replica_with_them(replica: Replica) -> None:
    port = int(replica.target.rpartition(":")[2])
    (follower,) = [rank for rank in ranks() if port not in listening(rank)]
    names = [str(n) for n in range(8)]
    link = SyncReplicaLink(replica.target, replica.token)
    for n, name in enumerate(names):
        link.submit(make_request(name, (n + 1, 2, 3), max_tokens=LONG))
    while not link.next_events():
        pass
    follower.send_signal(signal.SIGKILL)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(events_of, link, names).result(WAIT_S)
    link.close()
    for events in found.values():
        for event in events:
            assert event.finish_reason is None, "the kill came too late to tell anything"
        (terminal,) = [event for event in events if event.terminal]
        assert terminal is events[-1]
        assert (terminal.error_code, terminal.retryable) == ("UNAVAILABLE", True)
        assert "rank 1" in str(terminal.error)
    with pytest.raises(ReplicaUnavailable):
        SyncReplicaLink(replica.target, replica.token, timeout_s=1.0)


def test_stopping_a_gang_gives_everything_back_even_where_a_rank_was_killed(
    session: RaySession, gang: Gang
) -> None:
    gang.stop()
    gang.stop()
    assert no_rank_is_left(session)


def listening(process: psutil.Process) -> set[int]:
    connections = process.net_connections("inet")
    return {entry.laddr.port for entry in connections if entry.status == psutil.CONN_LISTEN}


# Not even started


def broken(oracle: Oracle, folder: Path) -> Path:
    shutil.copytree(oracle.folder, folder)
    os.truncate(folder / "model.safetensors", 100_000)
    return folder


def check_refusal(
    session: RaySession, model: Path, config: EngineConfig, error: type[HeadwayError], text: str
) -> None:
    """`start` fails with one line that matches `text`, and leaves nobody behind."""
    with pytest.raises(error, match=text) as caught:
        Gang(session, str(model), config).start()
    assert "\n" not in str(caught.value)
    assert no_rank_is_left(session)


def test_a_truncated_checkpoint_is_named_and_no_actor_is_left(
    session: RaySession, gqa: Oracle, tmp_path: Path
) -> None:
    model = broken(gqa, tmp_path / "broken")
    check_refusal(session, model, CONFIG, ModelError, "model.safetensors")


def test_a_folder_that_is_gone_is_named_and_no_actor_is_left(session: RaySession, tmp_path: Path) -> None:
    check_refusal(session, tmp_path / "gone", CONFIG, ModelError, "gone")


def test_more_pages_than_there_is_memory_are_refused_with_the_sum(session: RaySession, gqa: Oracle) -> None:
    config = EngineConfig(tp=2, device="cpu", num_pages=1 << 28)
    check_refusal(
        session,
        gqa.folder,
        config,
        StartError,
        rf"no memory for {1 << 28:,} KV pages \(num_pages={1 << 28}\): .* MiB for pages",
    )


def test_more_ranks_than_the_cluster_has_room_for_are_refused_with_what_is_free(
    session: RaySession, gqa: Oracle
) -> None:
    num_cpus = os.cpu_count() or 1
    tp = 10 * num_cpus + 1
    config = EngineConfig(tp=tp, device="cpu", start_timeout_s=1.0)
    text = rf"tp={tp} needs {tp} x 0\.1 CPU, the Ray cluster has {num_cpus} CPU free"
    check_refusal(session, gqa.folder, config, StartError, text)


def test_ranks_that_are_late_are_named_with_what_they_were_at(session: RaySession, gqa: Oracle) -> None:
    config = EngineConfig(tp=2, device="cpu", num_pages=64, start_timeout_s=1.0)
    text = r"ranks \[[01, ]+\] did not finish 'locate' within start_timeout_s \(1 s\)"
    check_refusal(session, gqa.folder, config, StartError, text)


@pytest.mark.parametrize(
    "error", [StepMismatch(1, 7, "its pages differ"), InvalidRequest("n", "1", 3), ModelError("no weights")]
)
def test_the_error_of_a_rank_arrives_as_it_was_raised(
    session: RaySession, gqa: Oracle, error: HeadwayError
) -> None:
    def fail(error: HeadwayError) -> None:
        raise error

    gang = Gang(session, str(gqa.folder), CONFIG)
    ref = session.ray.remote(num_cpus=0)(fail).remote(error)
    with pytest.raises(type(error)) as caught:
        gang._result(ref, 1, "load")
    assert (str(caught.value), vars(caught.value)) == (str(error), vars(error))


def test_a_cluster_that_cannot_be_reached_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(StartError, match=f"ray cannot be reached at 127.0.0.1:{port}: Connection refused"):
        RaySession(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    "address", ["nonsense", "host:port", ":6379", "host:", "ray://host:1", "http://host:1", "host:65536"]
)
def test_an_address_that_is_none_is_refused_with_what_one_looks_like(address: str) -> None:
    with pytest.raises(ConfigError, match=f"ray address must be auto, local or HOST:PORT, got '{address}'"):
        RaySession(address)


# The cluster


def test_clusters_of_one_process_share_its_token_and_no_environment_is_overwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    env.prepare_ray(local=True)
    first = dict(os.environ)
    env.prepare_ray(local=True)
    assert dict(os.environ) == first
    assert (os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])) == ("token", 64)


def test_closing_the_session_leaves_no_process_and_no_shared_memory(session: RaySession) -> None:
    processes = psutil.Process().children(recursive=True)
    shared = shared_files(processes)
    assert any("raylet" in process.name() for process in processes)
    assert shared
    session.close()
    session.close()
    _, alive = psutil.wait_procs(processes, timeout=WAIT_S)
    assert alive == []
    assert [file for file in shared if file.exists()] == []


def shared_files(processes: list[psutil.Process]) -> set[Path]:
    """Files of /dev/shm that `processes` have mapped."""
    found = set()
    for process in processes:
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        except OSError:
            continue
        found |= {
            Path(line[line.index("/dev/shm") :].removesuffix(" (deleted)"))
            for line in maps
            if "/dev/shm" in line
        }
    return found
