"""No request waits for a compiler: the warm-up launches every variant of a kernel that requests then need."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from headway.model.folder import read_spec
from headway.model.weights import shard_plan

pytest.importorskip("triton")

SUPPORT = Path(__file__).parents[1] / "support"
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 65_600, "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "one layer with a window, one without": {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "sliding_window": 128,
        "sliding_window_pattern": 2, "query_pre_attn_scalar": 64, "tie_word_embeddings": True,
    },
    "experts": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 12,
        "num_experts_per_tok": 4, "moe_intermediate_size": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def used(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `warm_kernels.py` says of each variant. A process of its own: here kernels are interpreted."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(SIZES | MODELS[request.param]))
    shapes = shard_plan(read_spec(folder), 1).sources
    zeros = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(zeros, folder / "model.safetensors")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, SUPPORT / "warm_kernels.py", folder]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_requests_need_no_kernel_that_the_warm_up_lacks(used: list[dict[str, Any]]) -> None:
    cold = [one for one in used if one["step"] is None]
    assert not cold, "\n".join(map(str, cold))


def test_a_warm_up_of_the_largest_step_alone_would_be_noticed(used: list[dict[str, Any]]) -> None:
    later = {one["kernel"] for one in used if one["step"] != 0}
    assert {"decode_plan._plan_kernel", "penalise._penalise_kernel"} <= later
