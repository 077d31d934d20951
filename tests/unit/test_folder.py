"""From a folder's files to a spec and a list of tensors, and what is wrong with bad folders."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from headway.core.errors import ModelError
from headway.model.checkpoint import INDEX, SINGLE, read_checkpoint, read_header
from headway.model.folder import read_spec, resolve
from headway.model.spec import Rope, RopeKind

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 112,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def write_config(folder: Path, **changes: Any) -> Path:
    config = {name: value for name, value in (CONFIG | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_config_becomes_a_spec(tmp_path: Path) -> None:
    spec = read_spec(write_config(tmp_path))
    assert (spec.family, spec.hidden_size, spec.mlp_size, spec.vocab_size) == ("llama", 112, 96, 100)
    assert (spec.num_q_heads, spec.num_kv_heads, spec.head_dim, spec.num_layers) == (14, 2, 8, 2)
    assert (spec.max_model_len, spec.norm_eps, spec.dtype) == (512, 1e-6, "bfloat16")
    assert (spec.qkv_bias, spec.o_bias, spec.mlp_bias, spec.tied_head) == (False, False, False, False)
    assert spec.rope == Rope(theta=10_000.0, dim=8)
    assert spec.eos_token_ids == (2,)


def test_fields_that_may_be_absent_or_null_take_their_defaults(tmp_path: Path) -> None:
    spec = read_spec(write_config(tmp_path, num_key_value_heads=None, dtype=..., torch_dtype="float16"))
    assert (spec.num_kv_heads, spec.dtype) == (14, "float16")
    spec = read_spec(write_config(tmp_path, head_dim=16, attention_bias=True, mlp_bias=True))
    assert (spec.head_dim, spec.rope.dim) == (16, 16)
    assert (spec.qkv_bias, spec.o_bias, spec.mlp_bias) == (True, True, True)
    assert read_spec(write_config(tmp_path, tie_word_embeddings=True)).tied_head


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_theta": 5e5}, Rope(theta=5e5, dim=8)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(theta=5e5, dim=8)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(theta=5e5, dim=8)),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            Rope(theta=1e4, dim=8, kind=RopeKind.LINEAR, factor=2.0),
        ),
        (
            {"rope_parameters": LLAMA3},
            Rope(theta=5e5, dim=8, kind=RopeKind.LLAMA3, factor=8.0, original_max_len=64),
        ),
    ],
)
def test_rotary_fields_are_read_as_old_and_new_transformers_write_them(
    tmp_path: Path, fields: dict[str, Any], rope: Rope
) -> None:
    assert read_spec(write_config(tmp_path, **fields)).rope == rope


def test_generation_config_has_the_last_word_on_the_end_of_sequence(tmp_path: Path) -> None:
    write_config(tmp_path, eos_token_id=[3, 4])
    assert read_spec(tmp_path).eos_token_ids == (3, 4)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6, 5]}')
    assert read_spec(tmp_path).eos_token_ids == (5, 6)
    (tmp_path / "generation_config.json").write_text("{}")
    assert read_spec(tmp_path).eos_token_ids == (3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, r"model_type 'lama' is not supported; supported: .*nearest: llama"),
        ({"model_type": ...}, "config.json lacks model_type; supported: "),
        ({"model_type": "phi", "architectures": ["PhiForCausalLM"]}, r"its architectures are \['PhiFor"),
        ({"model_type": ["llama"]}, "model_type .* is not supported"),
        ({"architectures": ["LlamaModel"]}, "architecture 'LlamaModel' is not supported; .*LlamaForCausalLM"),
        ({"architectures": 3}, "architecture 3 is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"is quantised \('fp8'\)"),
        ({"hidden_act": "gelu"}, "hidden_act must be one of silu, got 'gelu'"),
        ({"hidden_size": ...}, "config.json lacks hidden_size"),
        ({"hidden_size": "112"}, "hidden_size must be an integer from 1 to 2147483648, got '112'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer from 1 to 4096, got 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be"),
        ({"num_key_value_heads": 4}, r"num_attention_heads \(14\) must be a multiple of"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number, got nan"),
        ({"mlp_bias": "yes"}, "mlp_bias must be true or false, got 'yes'"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16, bfloat16, got 'int8'"),
        ({"eos_token_id": 100}, "eos_token_id must be ids from 0 to 99"),
        ({"head_dim": 7}, "rotary dim must be even"),
        (
            {"rope_parameters": {"rope_type": "axial", "factor": 2}},
            "rope_type must be one of .*, got 'axial'",
        ),
        ({"rope_scaling": {"type": "su", "factor": 2}}, "rope_type must be one of .*, got 'su'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks factor"),
        ({"rope_scaling": 3}, "rope_scaling must be one object"),
        ({"rope_parameters": {"full_attention": LLAMA3}}, "rope_parameters must be one object for all"),
        ({"rope_parameters": LLAMA3 | {"low_freq_factor": 4}}, "low_freq_factor must be below"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_in_one_line_that_names_the_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read_spec(write_config(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_code_that_a_config_names_is_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "modeling.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto_map = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    read_spec(write_config(tmp_path, auto_map=auto_map))
    with pytest.raises(ModelError, match="model_type 'mine' is not supported"):
        read_spec(write_config(tmp_path, model_type="mine", auto_map=auto_map))
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_usable_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_spec(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        read_spec(tmp_path / "nowhere")
    for text in ("{", "[]", "[" * 100_000, "\xff"):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ModelError, match=r"config\.json"):
            read_spec(tmp_path)


def tensors(**shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def write_shards(folder: Path) -> None:
    save_file(tensors(a=(2, 3)), folder / "model-1.safetensors")
    save_file(tensors(b=(4,)), folder / "model-2.safetensors")
    write_index(folder, a="model-1.safetensors", b="model-2.safetensors")


def write_index(folder: Path, **places: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_headers_give_shape_type_and_place_of_every_tensor(tmp_path: Path) -> None:
    save_file(
        {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.ones(4, np.float16)}, tmp_path / SINGLE
    )
    found = read_checkpoint(tmp_path)
    assert {name: (info.dtype, info.shape, info.num_bytes) for name, info in found.items()} == {
        "x": ("F32", (2, 3), 24),
        "y": ("F16", (4,), 8),
    }
    data = (tmp_path / SINGLE).read_bytes()[found["x"].offset :][:24]
    assert np.frombuffer(data, np.float32).tolist() == [0, 1, 2, 3, 4, 5]


def test_indexed_shards_are_read_as_one_checkpoint(tmp_path: Path) -> None:
    write_shards(tmp_path)
    found = read_checkpoint(tmp_path)
    assert {name: info.file.name for name, info in found.items()} == {
        "a": "model-1.safetensors",
        "b": "model-2.safetensors",
    }


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "model-2.safetensors").unlink(), r"lacks shard model-2.*download it again"),
        (lambda folder: write_index(folder, a="model-2.safetensors"), "lacks tensor a that"),
        (lambda folder: write_index(folder, c="model-1.safetensors"), "lacks tensor c that"),
        (lambda folder: write_index(folder, a="../model-1.safetensors"), "not a file beside it"),
        (lambda folder: write_index(folder, a=3), "must map tensor names to files"),
        (lambda folder: (folder / INDEX).write_text("{}"), "must map tensor names to files"),
        (
            lambda folder: save_file(tensors(a=(1,), b=(4,)), folder / "model-2.safetensors"),
            "tensor a is in more than one shard",
        ),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(
    tmp_path: Path, break_it: Callable[[Path], object], message: str
) -> None:
    write_shards(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_folder_with_only_pickled_weights_is_refused_with_reason_and_remedy(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"pickle")
    with pytest.raises(ModelError, match=rf"only pickled weights .*{name}.*can run code.*convert them"):
        read_checkpoint(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights: it must hold"):
        read_checkpoint(tmp_path)


def test_a_file_cut_short_in_header_or_data_is_called_truncated(tmp_path: Path) -> None:
    save_file(tensors(x=(8, 8), y=(3,)), tmp_path / SINGLE)
    whole = (tmp_path / SINGLE).read_bytes()
    for size in (0, 7, 8, 9, 100, len(whole) - 12, len(whole) - 1):
        (tmp_path / SINGLE).write_bytes(whole[:size])
        with pytest.raises(ModelError, match=rf"truncated: .* the file has {size} bytes; download it again"):
            read_checkpoint(tmp_path)


def write_header(file: Path, header: object, num_data_bytes: int = 0) -> None:
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(num_data_bytes))


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": ["F32"], "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "ab", "data_offsets": [0, 8]},
    ],
)
def test_a_header_that_describes_a_tensor_wrongly_is_refused(tmp_path: Path, entry: object) -> None:
    write_header(tmp_path / SINGLE, {"x": entry}, 8)
    with pytest.raises(ModelError, match="tensor x"):
        read_header(tmp_path / SINGLE)


@settings(deadline=None)
@given(raw=st.binary(max_size=200), declared=st.integers(0, 220))
def test_random_bytes_are_refused_as_broken_or_truncated(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, declared: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    file.write_bytes(struct.pack("<Q", declared) + b"!" + raw)
    with pytest.raises(ModelError, match=r"fuzzed\.safetensors"):
        read_header(file)


def test_a_model_is_a_folder_or_demo(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve("demo").name == "demo"
    assert resolve("demo").parent.name == "headway"


@pytest.mark.parametrize(
    "model",
    ["nowhere", "./owner/name", "/no/such/folder", "a/b/c", "", "../x", "o/n\n", "o/n@", "o/n@-x", "\0"],
)
def test_what_cannot_be_a_hub_name_is_refused_without_asking_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # so that no such folder happens to be there
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    with pytest.raises(ModelError, match=re.escape(f"model {model!r} is not a folder")):
        resolve(model)


def test_a_name_that_no_file_system_takes_is_one_line() -> None:
    with pytest.raises(ModelError, match="cannot be read: File name too long"):
        resolve("x" * 5000)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="is a file; give the folder"):
        resolve(str(tmp_path / "config.json"))


class Hub:
    """Stands in for the hub: raises `error` when asked about a model."""

    error: Exception | None = None
    asked_for: dict[str, Any]
    asked_about: tuple[str, str | None]

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def model_info(self, name: str, *, revision: str | None, timeout: float) -> None:
        assert timeout <= 10
        self.asked_about = (name, revision)
        if self.error is not None:
            raise self.error

    def download(self, name: str, **options: Any) -> str:
        self.asked_for = {"name": name} | options
        if options["local_files_only"] and name != "owner/cached":
            raise FileNotFoundError("not cached\nmore lines")
        return f"/cache/{options['revision'] or 'snapshot'}"


def test_a_hub_name_is_fetched_without_files_that_can_run_code(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    assert resolve("owner/name") == Path("/cache/snapshot")
    assert not [p for p in hub.asked_for["allow_patterns"] if re.search(r"\.(py|bin|pt)$|\*$", p)]
    assert "model*.safetensors" in hub.asked_for["allow_patterns"]
    resolve("owner/name", weights=False)
    assert not [p for p in hub.asked_for["allow_patterns"] if "safetensors" in p]


def test_a_hub_name_may_have_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    assert resolve("owner/name@v1.0") == Path("/cache/v1.0")
    assert hub.asked_about == ("owner/name", "v1.0")
    assert (hub.asked_for["name"], hub.asked_for["revision"]) == ("owner/name", "v1.0")
    hub.error = ConnectionError("no route")
    assert resolve("owner/cached@v1.0") == Path("/cache/v1.0")
    with pytest.raises(ModelError, match=r"model 'owner/name@v1\.0' is neither a folder nor"):
        resolve("owner/name@v1.0")


def test_a_hub_out_of_reach_is_one_line_unless_the_model_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    hub.error = ConnectionError("no route\nto host")
    assert resolve("owner/cached") == Path("/cache/snapshot")
    with pytest.raises(ModelError, match=r"'owner/name' is neither .*the hub cannot be reached: no route\)$"):
        resolve("owner/name")
