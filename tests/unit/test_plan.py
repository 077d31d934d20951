"""`headway plan`: figures, errors, and how little it imports."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from headway.cli.main import app
from headway.cli.plan import figures
from headway.cli.progress import progress_bars
from headway.cli.units import format_bytes, parse_bytes
from headway.core.errors import ConfigError, ModelError
from headway.core.progress import KERNELS, WEIGHTS
from headway.model.folder import read_spec
from headway.model.weights import shard_plan

CONFIG = {
    "model_type": "llama",
    "hidden_size": 112,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_json_states_what_each_rank_holds(folder: Path) -> None:
    plan: dict[str, Any] = json.loads(run(folder, "--tp", 3, "--gpu-memory", "1MiB", "--json"))["plan"]
    shards = shard_plan(read_spec(folder), 3)
    assert [rank["num_q_heads"] for rank in plan["ranks"]] == [7, 4, 3]
    assert [rank["num_kv_heads"] for rank in plan["ranks"]] == [1, 1, 1]
    assert [rank["num_replicas"] for rank in plan["ranks"]] == [0, 0, 1]
    for rank, one in enumerate(plan["ranks"]):
        assert one["weight_bytes"] == shards.rank(rank).target_bytes(2)
        page_bytes = one["num_kv_heads"] * 3 * 2 * 16 * 8 * 2  # layers, K and V, tokens, head_dim, bytes
        assert one["page_bytes"] == page_bytes
        assert one["kv_tokens"] == (int(0.9 * (1 << 20)) - one["weight_bytes"]) // page_bytes * 16
    assert plan["kv_tokens"] == min(one["kv_tokens"] for one in plan["ranks"])
    assert plan["max_context"] == 512
    assert plan["kv_replicas"] == 1
    assert plan["replicated_bytes_per_token"] == 2 * 8 * 2 * 3
    weights = [one["weight_bytes"] for one in plan["ranks"]]
    assert plan["imbalance"] == pytest.approx(max(weights) / (sum(weights) / 3) - 1)


def test_json_states_what_a_plan_takes_for_granted(folder: Path) -> None:
    assert json.loads(run(folder, "--gpu-memory", "1GiB", "--json"))["assumptions"] == {
        "gpu_memory_bytes": 1 << 30,
        "memory_fraction": 0.9,
        "activation_bytes": 0,
        "dtype": "bfloat16",
        "page_size": 16,
        "max_num_rows": 1024,
        "max_num_tokens": 1024,
    }
    for options in ((), ("--compare", "--tp", 3)):
        assumed = "assumed: 1.0 GiB x 0.9 a rank, bfloat16, pages of 16 tokens, 1,024 rows; no activations\n"
        assert run(folder, "--gpu-memory", "1GiB", *options).endswith(assumed)


GEMMA_3_27B = {
    "model_type": "gemma3_text",
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "sliding_window": 1024,
    "query_pre_attn_scalar": 168,
    "dtype": "bfloat16",
}


def test_layers_with_a_window_leave_their_memory_to_those_without(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GEMMA_3_27B))
    plan: dict[str, Any] = json.loads(run(tmp_path, "--json"))["plan"]
    assert plan["windows"] == [1024, None]
    windowed, full = plan["num_pages"]
    a_layer = 2 * 16 * 16 * 128 * 2  # K and V, tokens, heads, values, bytes
    room = int(0.9 * (80 << 30)) - plan["ranks"][0]["weight_bytes"]
    assert 0 <= room - (52 * windowed + 10 * full) * a_layer < 10 * a_layer
    equal = room // (62 * a_layer)
    assert full > 3 * equal
    assert windowed > equal / 2
    assert (plan["kv_tokens"], plan["max_context"]) == (16 * full, 131_072)
    assert f"52 layers have a window of 1,024: {16 * windowed:,} KV tokens there" in run(tmp_path)


def test_where_every_layer_has_a_window_the_context_may_exceed_the_pool(folder: Path) -> None:
    config = CONFIG | {"model_type": "mistral", "sliding_window": 64, "max_position_embeddings": 1 << 20}
    (folder / "config.json").write_text(json.dumps(config))
    plan = figures(read_spec(folder), 1, 1 << 20)
    assert plan.kv_tokens < 10_000
    assert plan.max_context == 1 << 20


def test_the_largest_context_is_what_fits_where_that_is_less_than_the_models(folder: Path) -> None:
    spec = read_spec(folder)
    one = figures(spec, 1, 1 << 20)
    room = int((one.ranks[0].weight_bytes + 5.5 * one.ranks[0].page_bytes) / 0.9)
    assert figures(spec, 1, room).max_context == 5 * 16
    assert figures(spec, 1, one.ranks[0].weight_bytes).max_context == 0


def test_the_tables_show_ranks_or_world_sizes_within_eighty_columns(folder: Path) -> None:
    ranks = run(folder, "--tp", 3)
    assert "14 query and 2 KV heads" in ranks
    imbalance = figures(read_spec(folder), 3, 80 << 30).imbalance
    assert f"largest rank {imbalance:.1%} above the mean; 1 KV head replicated" in ranks
    compared = run(folder, "--tp", 4, "--compare")
    rows = [line.split() for line in compared.splitlines()]
    assert [row[0] for row in rows if row and row[0].isdigit()] == ["1", "2", "3", "4"]
    assert "each max is the largest over ranks" in compared
    for text in (ranks, compared):
        assert "…" not in text[text.index("\n") :]
    plans = json.loads(run(folder, "--tp", 4, "--compare", "--json"))["plans"]
    assert [plan["tp"] for plan in plans] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tp", 15), r"tp must be at most 14 \(the model's query heads\), got 15"),
        (("--tp", 10**9, "--compare"), "tp must be at most 14"),
        (("--tp", 0), "tp must be at least 1, got 0"),
        (("--tp", -1, "--compare"), "tp must be at least 1, got -1"),
        (("--gpu-memory", "lots"), "gpu-memory must be a positive size such as 80GiB or 500MB, got 'lots'"),
    ],
)
def test_a_wrong_setting_names_field_limit_and_value(
    folder: Path, arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(folder, *arguments)


def test_weights_that_do_not_fit_are_named_with_rank_need_and_limit(folder: Path) -> None:
    for options in ((), ("--json",), ("--compare",)):
        with pytest.raises(
            ConfigError,
            match=r"^the weights do not fit: rank 0 needs \S+ KiB of weights and \S+ KiB a page, "
            r"90% of gpu-memory is 921 B$",
        ):
            run(folder, "--tp", 3, "--gpu-memory", "1KiB", *options)


def test_a_comparison_shows_that_fewer_ranks_have_no_room(folder: Path) -> None:
    spec = read_spec(folder)
    room = figures(spec, 1, 1 << 20).ranks[0].weight_bytes
    plans = json.loads(run(folder, "--tp", 2, "--compare", "--gpu-memory", room, "--json"))["plans"]
    assert [plan["max_context"] > 0 for plan in plans] == [False, True]


def test_an_unknown_model_is_one_line_and_exit_code_2(folder: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        run(folder / "nowhere")
    code = "import sys; sys.argv[1:] = ['plan', 'nowhere']; from headway.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "headway: model 'nowhere' is not a folder, a hub name (owner/name) or 'demo'\n"


@pytest.mark.parametrize("command", ["--help", "plan"])
def test_help_and_plan_import_nothing_heavy(folder: Path, command: str) -> None:
    arguments = ["--help"] if command == "--help" else ["plan", str(folder), "--tp", "3"]
    code = (
        "import sys\n"
        "from headway.cli.main import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'triton', 'ray', 'transformers', 'numpy', 'grpc', 'huggingface_hub'}\n"
        "print('heavy:', sorted(heavy & sys.modules.keys()))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert result.stdout.splitlines()[-1] == "heavy: []", result.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 << 30),
        ("1.5 kib", 1536),
        ("2MB", 2_000_000),
        ("512", 512),
        ("3g", 3 * 10**9),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_bytes("size", text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5.2", "nan", "1e9", "5i", "9" * 40, "1 PB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="size must be a positive size"):
        parse_bytes("size", text)


def test_sizes_are_shown_in_the_unit_that_keeps_them_short() -> None:
    shown = [format_bytes(size) for size in (0, 1023, 1536, 5 << 20, 80 << 30, 3 << 40)]
    assert shown == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "80.0 GiB", "3.0 TiB"]


def test_progress_bars_go_to_stderr_where_that_is_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> tuple[str, str]:
        with progress_bars() as report:
            report(WEIGHTS, 1 << 20, 2 << 20)
            report(WEIGHTS, 2 << 20, 2 << 20)
            report(KERNELS, 3, 9)
        return tuple(capsys.readouterr())

    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert load() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    out, err = load()
    assert out == ""
    for shown in ("Loading weights", "2.0 MiB of 2.0 MiB", "Compiling kernels", "3 of 9"):
        assert shown in err


def test_few_rows_bound_what_is_planned_as_they_bound_a_server(folder: Path) -> None:
    plan = json.loads(run(folder, "--max-num-rows", 3, "--json"))
    assert plan["assumptions"]["max_num_rows"] == 3
    assert plan["plan"]["kv_tokens"] == 3 * 512
    with pytest.raises(ConfigError, match="max_num_rows must be an integer from 1 to 65536, got 0"):
        run(folder, "--max-num-rows", 0)
