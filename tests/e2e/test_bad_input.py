"""What is wrong is said in one line that names field, limit and value; nothing is left running."""

import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command import CANNOT_START, WRONG, check_refused, run_watched, watched
from headway.model.folder import resolve


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with copies of the bundled model in models/; each is bad in what its name says."""
    place = tmp_path_factory.mktemp("bad")
    config, weights = (resolve("demo") / name for name in ("config.json", "model.safetensors"))
    whole = weights.read_bytes()
    header_bytes = int.from_bytes(whole[:8], "little")

    def folder(name: str, *files: Path) -> Path:
        made = place / "models" / name
        made.mkdir(parents=True)
        for file in files:
            shutil.copy(file, made)
        return made

    folder("no_config", weights)
    folder("no_weights", config)
    (folder("only_pickles", config) / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for name, size in (("truncated", len(whole) - 1), ("half_a_header", header_bytes // 2)):
        (folder(name, config) / weights.name).write_bytes(whole[:size])
    other = folder("other_family", config, weights) / "config.json"
    other.write_text(other.read_text().replace('"llama"', '"bert"'))
    return place


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


BAD_MODELS = {
    "nowhere": "model 'nowhere' is not a folder, a hub name (owner/name) or 'demo'",
    "nobody/nothing": "model 'nobody/nothing' is neither a folder nor a model that can be fetched",
    "models/no_config": "models/no_config has no config.json; give a folder in Hugging Face layout",
    "models/no_weights": "models/no_weights has no weights: it must hold model.safetensors or",
    "models/only_pickles": "only pickled weights ('pytorch_model.bin'), which can run code when loaded",
    "models/truncated": "truncated: its tensors end at byte 9490824, the file has 9490823 bytes",
    "models/half_a_header": "model.safetensors is truncated: its header ends at byte",
    "models/other_family": "model_type 'bert' is not supported; supported: ",
}


@pytest.mark.parametrize("model", BAD_MODELS)
def test_a_model_that_cannot_be_served_is_refused(model: str, models: Path) -> None:
    check_refused(models, WRONG, BAD_MODELS[model], "serve", model, "--tp", "2")


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "x", "--tp", "2", "--model"),
        ("chat", "--model"),
        ("demo", "--model"),
        ("bench", "latency", "--model"),
        ("bench", "tp", "--model"),
    ],
    ids=" ".join,
)
def test_every_command_that_loads_a_model_refuses_it_alike(words: tuple[str, ...], models: Path) -> None:
    check_refused(models, WRONG, BAD_MODELS["models/truncated"], *words, "models/truncated")


SETTINGS = {
    "--tp=9": "tp must be at most 8 (the model's query heads), got 9",
    "--tp=0": "tp must be an integer from 1 to 1024, got 0",
    "--device=tpu": "device must be one of auto, cpu, cuda, got 'tpu'",
    "--dtype=int8": "dtype must be one of auto, float32, float16, bfloat16, got 'int8'",
    "--max-model-len=1025": "max_model_len must be at most 1024 (the model's context), got 1025",
    "--num-pages=0": "num_pages must be an integer from 1 to 2147483648, got 0",
    "--memory-fraction=nan": "memory_fraction must be from 0.01 to 1, got nan",
    "--max-in-flight=0": "max_in_flight must be at least 1, got 0",
    "--grpc=127.0.0.1": "address must be HOST:PORT with a port from 0 to 65535, got '127.0.0.1'",
    "--grpc=0.0.0.0:0": "token must be set to listen on 0.0.0.0:0, which other hosts can reach",
    "--grpc=[::]:0": "token must be set to listen on [::]:0, which other hosts can reach",
    "--grpc=127.0.0.1.example.com:0": "token must be set to listen on 127.0.0.1.example.com:0",
    "--token=two\nlines": "token must be printable ASCII",
    "--tls-cert=cert.pem": "tls_cert and tls_key must be given together",
    "--ray=somewhere": "ray address must be auto, local or HOST:PORT, got 'somewhere'",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_out_of_its_bounds_is_refused(setting: str, tmp_path: Path) -> None:
    check_refused(tmp_path, WRONG, SETTINGS[setting], "serve", "demo", setting)


def test_no_token_is_shown(tmp_path: Path) -> None:
    for words in (("serve", "demo"), ("generate", "x")):
        ran = run_watched(*words, "--token", "s3cret\n", cwd=tmp_path)
        assert "s3cret" not in ran.err + ran.out


START: dict[str, Callable[[int, int], tuple[str, str]]] = {
    "a taken port": lambda taken, closed: (
        f"--grpc=127.0.0.1:{taken}",
        f"cannot listen on 127.0.0.1:{taken}: Address already in use",
    ),
    "an unreachable Ray": lambda taken, closed: (
        f"--ray=127.0.0.1:{closed}",
        f"ray cannot be reached at 127.0.0.1:{closed}: Connection refused",
    ),
    "a certificate that is not there": lambda taken, closed: (
        "--tls-cert=cert.pem --tls-key=key.pem",
        "key.pem cannot be read: No such file or directory",
    ),
}


@pytest.mark.parametrize("what", START)
def test_a_server_that_cannot_start_says_why(what: str, tmp_path: Path) -> None:
    with taken_port() as taken:
        setting, message = START[what](taken, closed_port())
        check_refused(tmp_path, CANNOT_START, message, "serve", "demo", *setting.split())


REQUESTS = {
    "--temperature=-1": "temperature must be a number from 0 to 100, got -1.0",
    "--temperature=nan": "temperature must be a number from 0 to 100, got nan",
    "--top-p=inf": "top_p must be a number from 1e-06 to 1, got inf",
    "--top-k=-1": "top_k must be an integer from 0 to 1048576, got -1",
    "--min-p=nan": "min_p must be a number from 0 to 1, got nan",
    "--min-tokens=300": "min_tokens must be at most max_tokens (256), got 300",
    "--repetition-penalty=0": "repetition_penalty must be a number from 0.01 to 100, got 0.0",
    "--presence-penalty=3": "presence_penalty must be a number from -2 to 2, got 3.0",
    "--frequency-penalty=nan": "frequency_penalty must be a number from -2 to 2, got nan",
    "--logprobs=21": "logprobs must be an integer from 0 to 20, got 21",
    "--logprobs=1": "logprobs=1 needs --json",
    "--n=2": "n=2 needs --json",
    "--tls-ca=ca.pem": "give either --tls-ca, which is for a server, or --model, not both",
    "--device=tpu": "device must be one of auto, cpu, cuda, got 'tpu'",
    "--dtype=int8": "dtype must be one of auto, float32, float16, bfloat16, got 'int8'",
    "--max-tokens=0": "max_tokens must be an integer from 1 to 1048576, got 0",
    "--stop=": "stop[0] must be 1 to 256 characters, got 0",
}


@pytest.mark.parametrize("setting", REQUESTS)
def test_a_sampling_value_out_of_its_bounds_is_refused(setting: str, tmp_path: Path) -> None:
    check_refused(tmp_path, WRONG, REQUESTS[setting], "generate", "x", "--model", "demo", setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--tp=2", "tp must be 1 without --model, got 2"),
        ("--device=cpu", "device must be auto without --model, got cpu"),
        ("--dtype=float32", "dtype must be auto without --model, got float32"),
    ],
)
def test_what_a_server_has_settled_is_not_for_its_callers(setting: str, message: str, tmp_path: Path) -> None:
    for words in (("generate", "x"), ("chat",)):
        check_refused(tmp_path, WRONG, message, *words, setting)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    target = f"127.0.0.1:{closed_port()}"
    message = f"{target}: failed to connect to all addresses"
    check_refused(tmp_path, CANNOT_START, message, "generate", "x", "--target", target)


def test_measurements_that_do_not_fit_are_refused_before_they_begin(tmp_path: Path) -> None:
    message = "prompt-tokens plus tokens must be at most 1024 (the model's context), got 1032"
    check_refused(tmp_path, WRONG, message, "bench", "latency", "--tokens", "1000")
    message = "json must be a file in a folder that exists, got 'nowhere/figures.json'"
    check_refused(tmp_path, WRONG, message, "bench", "throughput", "--json", "nowhere/figures.json")


def test_a_command_that_left_a_process_behind_would_be_found_out(tmp_path: Path) -> None:
    sleeper = "import subprocess as s; s.Popen(['sleep', '60'], start_new_session=True)"
    assert watched([sys.executable, "-c", sleeper], cwd=tmp_path).left == ("sleep",)


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (CANNOT_START, "'nowhere'", ("plan", "nowhere")),
        (WRONG, "another reason", ("plan", "nowhere")),
        (WRONG, "", ("bench",)),  # help instead of a line
    ],
)
def test_a_wrong_refusal_would_be_found_out(
    code: int, message: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="expected exit code"):
        check_refused(tmp_path, code, message, *words)
