"""Loading a rank's shard: values, bytes and memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from headway.core.errors import ModelError
from headway.model.checkpoint import INDEX, read_checkpoint
from headway.model.folder import read_spec
from headway.model.loader import MAPPED_BYTES, load
from headway.model.spec import DecoderSpec, Experts, LayerSpec
from headway.model.stored import Order, Stored
from headway.model.weights import ShardPlan, shard_plan

Tensors = dict[str, torch.Tensor]


def save_llama(folder: Path, *, max_shard_size: str = "1GB", **changes: Any) -> Path:
    config: dict[str, Any] = {
        "hidden_size": 112,
        "intermediate_size": 90,
        "num_hidden_layers": 2,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 101,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(config | changes)))
    for parameter in model.parameters():  # biases and norms too, which start as zeros and ones
        torch.nn.init.normal_(parameter)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def whole(folder: Path) -> Tensors:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def expected(plan: ShardPlan, rank: int, full: Tensors) -> Tensors:
    """The rank's tensors, cut out of the whole ones with plain indexing."""
    one, dim = plan.rank(rank), plan.spec.head_dim
    heads = one.heads
    q = torch.cat([torch.arange(head * dim, (head + 1) * dim) for head in heads.q])
    kv = torch.cat([torch.arange(head * dim, (head + 1) * dim) for head in heads.kv])
    mlp, vocab = torch.tensor(one.mlp), torch.tensor(one.vocab)
    tensors = {
        "embed.weight": full["model.embed_tokens.weight"][vocab],
        "norm.weight": full["model.norm.weight"],
    }
    if not plan.spec.tied_head:
        tensors["head.weight"] = full["lm_head.weight"][vocab]
    for i in range(plan.spec.num_layers):
        source, target = f"model.layers.{i}.", f"layers.{i}."
        tensors[f"{target}attn_norm.weight"] = full[f"{source}input_layernorm.weight"]
        tensors[f"{target}mlp_norm.weight"] = full[f"{source}post_attention_layernorm.weight"]
        tensors[f"{target}o.weight"] = full[f"{source}self_attn.o_proj.weight"][:, q]
        tensors[f"{target}down.weight"] = full[f"{source}mlp.down_proj.weight"][:, mlp]
        for end, wanted in (("weight", True), ("bias", plan.spec.qkv_bias)):
            if wanted:
                rows = {"q": q, "k": kv, "v": kv}
                parts = [full[f"{source}self_attn.{name}_proj.{end}"][index] for name, index in rows.items()]
                tensors[f"{target}qkv.{end}"] = torch.cat(parts)
                parts = [full[f"{source}mlp.{name}_proj.{end}"][mlp] for name in ("gate", "up")]
                tensors[f"{target}gate_up.{end}"] = torch.cat(parts)
        if plan.spec.o_bias and rank == 0:
            tensors[f"{target}o.bias"] = full[f"{source}self_attn.o_proj.bias"]
            tensors[f"{target}down.bias"] = full[f"{source}mlp.down_proj.bias"]
    return tensors


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 14, "tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 6},
        {"max_shard_size": "100KB"},
    ],
    ids=["grouped", "multi-head and tied", "biases", "indexed shards"],
)
def test_each_rank_gets_its_slices_of_what_transformers_saved(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = save_llama(tmp_path, **changes)
    assert (folder / "model.safetensors.index.json").exists() == ("max_shard_size" in changes)
    full = whole(folder)
    for world_size in (1, 2, 3, 5):
        plan = shard_plan(read_spec(folder), world_size)
        for rank in range(world_size):
            loaded = load(folder, plan, rank, device="cpu", dtype=torch.bfloat16)
            wanted = expected(plan, rank, full)
            assert loaded.keys() == wanted.keys()
            for name, tensor in loaded.items():
                assert torch.equal(tensor, wanted[name]), (world_size, rank, name)


GROUPS, GATE_UP = "model.layers.{i}.self_attn.qkv", "model.layers.{i}.mlp.gate_up"
FORMS: dict[str, tuple[str, Stored]] = {
    "q, k and v after each other": ("qkv", Stored(GROUPS)),
    "a KV head's group after another": ("qkv", Stored(GROUPS, order=Order.GROUPS)),
    "q, k and v transposed": ("qkv", Stored(GROUPS, transposed=True)),
    "groups, transposed": ("qkv", Stored(GROUPS, order=Order.GROUPS, transposed=True)),
    "gate and up after each other": ("gate_up", Stored(GATE_UP)),
    "gate and up in turns": ("gate_up", Stored(GATE_UP, order=Order.TURNS, weight="", bias="_bias")),
    "in turns, transposed": ("gate_up", Stored(GATE_UP, order=Order.TURNS, transposed=True)),
    "down transposed": ("down", Stored("model.layers.{i}.mlp.down_proj", transposed=True)),
}


def store(full: Tensors, spec: DecoderSpec, part: str, form: Stored) -> Tensors:
    """The tensors of Llama layers with those of `part` stored in `form`, put together with plain indexing."""
    modules = {
        "qkv": [f"self_attn.{name}_proj" for name in "qkv"],
        "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "down": ["mlp.down_proj"],
    }[part]
    counts = {Order.BLOCKS: 1, Order.GROUPS: spec.num_kv_heads, Order.TURNS: spec.mlp_size}
    full = dict(full)
    for i, kind in product(range(spec.num_layers), ("weight", "bias")):
        parts = [full.pop(f"model.layers.{i}.{module}.{kind}") for module in modules]
        count = counts[form.order]
        whole = torch.cat([part.unflatten(0, (count, -1)) for part in parts], 1).flatten(0, 1)
        transposed = form.transposed and kind == "weight"
        full[form.tensor(kind, layer=i, expert=None)] = whole.T.contiguous() if transposed else whole
    return full


@pytest.mark.parametrize("form", FORMS)
def test_a_rank_loads_the_same_however_the_checkpoint_stores_it(tmp_path: Path, form: str) -> None:
    folder = save_llama(tmp_path / "plain", attention_bias=True, mlp_bias=True, num_key_value_heads=7)
    part, stored = FORMS[form]
    other = tmp_path / "other"
    other.mkdir()
    plain = shard_plan(read_spec(folder), 4)
    save_file(store(whole(folder), plain.spec, part, stored), other / "model.safetensors")
    table = {**plain.family.weights(plain.spec), f"layers.{{i}}.{part}": stored}
    family = SimpleNamespace(weights=lambda spec: table, HARMLESS=(), PREFIX="model.")
    plan = replace(plain, family=family)
    for rank in range(4):
        expected = load(folder, plain, rank, device="cpu", dtype=torch.bfloat16)
        loaded = load(other, plan, rank, device="cpu", dtype=torch.bfloat16)
        assert loaded.keys() == expected.keys()
        for name, tensor in loaded.items():
            assert torch.equal(tensor, expected[name]), (rank, name)
        checkpoints = read_checkpoint(folder), read_checkpoint(other)
        assert plain.rank(rank).source_bytes(checkpoints[0]) == plan.rank(rank).source_bytes(checkpoints[1])


EXPERTS = {
    "a tensor an expert": {
        "layers.{i}.experts.gate": "x.{i}.{e}.w1",
        "layers.{i}.experts.up": "x.{i}.{e}.w3",
        "layers.{i}.experts.down": "x.{i}.{e}.w2",
    },
    "stacked": {
        "layers.{i}.experts.gate_up": Stored("x.{i}.gate_up", weight="", bias="_bias"),
        "layers.{i}.experts.down": Stored("x.{i}.down", weight="", bias="_bias"),
    },
    "stacked, transposed, in turns": {
        "layers.{i}.experts.gate_up": Stored("x.{i}.gate_up", order=Order.TURNS, transposed=True),
        "layers.{i}.experts.down": Stored("x.{i}.down", transposed=True),
    },
}


@pytest.mark.parametrize("form", EXPERTS)
def test_a_rank_loads_its_columns_of_every_expert(tmp_path: Path, form: str) -> None:
    spec = replace(
        read_spec(save_llama(tmp_path / "dense")),
        layers=(LayerSpec(sparse=True), LayerSpec()),
        experts=Experts(num_experts=3, top_k=2, mlp_size=7, bias=True, router_bias=True),
    )
    plain = shard_plan(spec, 3)
    table = {**plain.family.weights(spec), "layers.{i}.router": "x.{i}.router", **EXPERTS[form]}
    family = SimpleNamespace(weights=lambda spec: table, HARMLESS=(), PREFIX="")
    plan = replace(plain, family=family)
    full = {name: torch.randn(shape) for name, shape in plan.sources.items()}
    save_file(full, tmp_path / "model.safetensors")
    gate, up, down = (expert_weights(full, form, kind) for kind in ("gate", "up", "down"))
    for rank, columns in enumerate(plan.expert_mlp):
        loaded = load(tmp_path, plan, rank, device="cpu", dtype=torch.float32)
        own = slice(columns.start, columns.stop)
        gate_up = torch.cat((gate[:, own], up[:, own]), 1)
        assert torch.equal(loaded["layers.0.experts.gate_up.weight"], gate_up)
        assert torch.equal(loaded["layers.0.experts.down.weight"], down[:, :, own])
        assert ("layers.0.experts.down.bias" in loaded) == (rank == 0)
        assert torch.equal(loaded["layers.0.router.bias"], full["x.0.router.bias"])
        assert "layers.1.experts.down.weight" not in loaded


def expert_weights(full: Tensors, form: str, kind: str) -> torch.Tensor:
    """[expert, out, in] of the first layer, by plain indexing."""
    if form == "a tensor an expert":
        number = {"gate": 1, "up": 3, "down": 2}[kind]
        return torch.stack([full[f"x.0.{expert}.w{number}.weight"] for expert in range(3)])
    suffix = "" if form == "stacked" else ".weight"
    stacked = full[f"x.0.{'down' if kind == 'down' else 'gate_up'}{suffix}"]
    if form != "stacked":
        stacked = stacked.mT
        rows = {"gate": slice(0, None, 2), "up": slice(1, None, 2), "down": slice(None)}[kind]
    else:
        rows = {"gate": slice(7), "up": slice(7, None), "down": slice(None)}[kind]
    return stacked[:, rows]


def test_a_checkpoint_saved_without_the_head_lacks_the_prefix_of_its_names(tmp_path: Path) -> None:
    folder = save_llama(tmp_path, tie_word_embeddings=True)
    plan = shard_plan(read_spec(folder), 2)
    expected = load(folder, plan, 1, device="cpu", dtype=torch.bfloat16)
    bare = {name.removeprefix("model."): tensor for name, tensor in whole(folder).items()}
    save_file(bare, folder / "model.safetensors")
    loaded = load(folder, plan, 1, device="cpu", dtype=torch.bfloat16)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_values_are_converted_to_the_dtype_asked_for(tmp_path: Path) -> None:
    folder = save_llama(tmp_path)
    plan = shard_plan(read_spec(folder), 2)
    loaded = load(folder, plan, 1, device="cpu", dtype=torch.float32)
    for name, tensor in expected(plan, 1, whole(folder)).items():
        assert torch.equal(loaded[name], tensor.float()), name


def _append(calls: list[tuple[int, int]], done: int, total: int) -> None:
    calls.append((done, total))


def test_plan_and_loader_agree_to_the_byte(tmp_path: Path) -> None:
    folder = save_llama(tmp_path, max_shard_size="100KB")
    plan = shard_plan(read_spec(folder), 3)
    for rank in range(3):
        calls: list[tuple[int, int]] = []
        report = partial(_append, calls)
        loaded = load(folder, plan, rank, device="cpu", dtype=torch.float32, progress=report)
        one = plan.rank(rank)
        assert sum(tensor.nbytes for tensor in loaded.values()) == one.target_bytes(4)
        total = one.source_bytes(read_checkpoint(folder))
        assert total == one.target_bytes(2)
        assert calls[-1] == (total, total)
        assert len(calls) == len(one.reads)
        assert calls == sorted(calls)


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"lacks tensor model\.norm\.weight \[112\]"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), r"has tensor extra \[2\]"),
        (
            lambda tensors: tensors.update({"lm_head.weight": torch.zeros(101, 111)}),
            r"lm_head\.weight must have shape \[101, 112\], found \[101, 111\]",
        ),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.zeros(112, dtype=torch.int8)}),
            r"is quantised \(tensor model\.norm\.weight is I8\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_config_is_refused_by_tensor(
    tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    folder = save_llama(tmp_path)
    rewrite(folder, change)
    with pytest.raises(ModelError, match=message):
        load(folder, shard_plan(read_spec(folder), 2), 0, device="cpu", dtype=torch.float32)


def test_a_file_that_only_the_library_finds_broken_is_still_one_error_line(tmp_path: Path) -> None:
    folder = save_llama(tmp_path)
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"more than the header declares")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read") as caught:
        load(folder, shard_plan(read_spec(folder), 2), 0, device="cpu", dtype=torch.float32)
    assert "\n" not in str(caught.value)


LARGE = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 12_000,
    "dtype": "bfloat16",
}
SLACK_BYTES = 16 << 20  # what the allocator and the interpreter take beside the tensors

MEASURE = """
import sys
from pathlib import Path
import torch
from headway.model import loader
from headway.model.folder import read_spec
from headway.model.weights import shard_plan

def status(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10

folder, loader.MAPPED_BYTES = Path(sys.argv[1]), int(sys.argv[2])
plan = shard_plan(read_spec(folder), 2)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = status("VmRSS")
tensors = loader.load(folder, plan, 1, device="cpu", dtype=torch.bfloat16)
print(status("VmHWM") - before, sum(tensor.nbytes for tensor in tensors.values()))
"""


def save_large(folder: Path, num_files: int) -> None:
    (folder / "config.json").write_text(json.dumps(LARGE))
    sources = shard_plan(read_spec(folder), 2).sources
    places = {name: f"model-{index % num_files}.safetensors" for index, name in enumerate(sources)}
    for file in set(places.values()):
        shapes = {name: shape for name, shape in sources.items() if places[name] == file}
        tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
        save_file(tensors, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("num_files", [1, 3])
def test_memory_peaks_at_the_shard_and_one_tensor(tmp_path: Path, num_files: int) -> None:
    save_large(tmp_path, num_files)
    sizes = [info.num_bytes for info in read_checkpoint(tmp_path).values()]
    assert sum(sizes) >= 200 << 20
    grown, shard = measure(tmp_path, MAPPED_BYTES)
    limit = shard + max(*sizes, MAPPED_BYTES) + SLACK_BYTES
    assert shard <= grown <= limit
    if num_files == 1:  # the measurement finds a loader that keeps its files mapped
        assert measure(tmp_path, 1 << 40)[0] > limit


def measure(folder: Path, mapped_bytes: int) -> tuple[int, int]:
    """Bytes by which memory peaks while rank 1 of 2 loads in a process of its own, and its shard's."""
    command = [sys.executable, "-c", MEASURE, str(folder), str(mapped_bytes)]
    result = subprocess.run(command, capture_output=True, check=True, text=True)
    grown, shard = map(int, result.stdout.split())
    print(f"memory grew by {grown >> 20} MiB at its peak, the shard has {shard >> 20} MiB")
    return grown, shard
