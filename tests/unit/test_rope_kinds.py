"""Every kind of rotary embedding, from a config.json in old or new spelling to the angles of transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from headway.core.errors import ModelError
from headway.model.families.rope import context, rope
from headway.model.rotary import Rotary
from headway.model.spec import RopeKind

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 256}
DIM = 16
THETA = 50_000.0
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * pair for pair in range(8)],
    "long_factor": [2.0 + 1.5 * pair for pair in range(8)],
}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": LLAMA3 | {"original_max_position_embeddings": 64},
    "llama3, the context unscaled": LLAMA3,
    "yarn": YARN | {"original_max_position_embeddings": 64},
    "yarn, the context unscaled": YARN,
    "yarn, factor from the contexts": {
        "rope_type": "yarn",
        "factor": None,
        "original_max_position_embeddings": 64,
    },
    "yarn, own bounds": YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    "yarn, own attention factor": YARN | {"attention_factor": 0.7},
    "yarn, mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 0.5},
    "yarn, half an mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 0},
    "yarn, nothing between the bounds": YARN | {"original_max_position_embeddings": 4},
    "longrope": LONGROPE | {"original_max_position_embeddings": 64},
    "longrope, own factor": LONGROPE | {"factor": 7.0, "original_max_position_embeddings": 64},
    "longrope, own attention factor": LONGROPE
    | {"attention_factor": 1.3, "original_max_position_embeddings": 64},
}


def angles(config: dict[str, Any], length: int) -> tuple[Tensor, Tensor]:
    positions = torch.arange(length)
    lengths = torch.full_like(positions, length)
    ours = Rotary(rope(config, DIM), torch.device("cpu"))
    cos, sin = ours.cos_sin(positions, lengths, lengths)
    return cos[:, : DIM // 2], sin[:, DIM // 2 :]


@pytest.mark.parametrize("length", [60, 200, 700])
@pytest.mark.parametrize("name", SCALINGS)
def test_angles_of_a_sequence_are_those_of_transformers(name: str, length: int) -> None:
    scaling = SCALINGS[name]
    config = LlamaConfig(**SIZES, rope_parameters={"rope_theta": THETA, **scaling})
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, None, seq_len=length)
    theirs = torch.arange(length)[:, None] * frequencies
    cos, sin = angles(SIZES | {"rope_parameters": {"rope_theta": THETA, **scaling}}, length)
    torch.testing.assert_close(cos, theirs.cos() * factor, rtol=0, atol=2e-5)
    torch.testing.assert_close(sin, theirs.sin() * factor, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SCALINGS)
def test_the_old_spelling_means_the_same(name: str) -> None:
    scaling = SCALINGS[name]
    old = {"type": scaling["rope_type"], **{k: v for k, v in scaling.items() if k != "rope_type"}}
    new = SIZES | {"rope_parameters": {"rope_theta": THETA, **scaling}}
    assert rope(SIZES | {"rope_theta": THETA, "rope_scaling": old}, DIM) == rope(new, DIM)


def test_a_first_context_beside_the_scaling_goes_before_one_within() -> None:
    scaling = LONGROPE | {"original_max_position_embeddings": 64}
    config = SIZES | {"original_max_position_embeddings": 32, "rope_scaling": scaling}
    theirs = LlamaConfig(**SIZES, original_max_position_embeddings=32, rope_parameters=dict(scaling))
    theirs.standardize_rope_params()
    assert theirs.rope_parameters["original_max_position_embeddings"] == 32
    assert rope(config, DIM).original_max_len == 32


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        ({"rope_type": "default"}, 256),
        (SCALINGS["linear"], 640),
        (SCALINGS["dynamic"], 768),
        (SCALINGS["llama3"], 256),
        (SCALINGS["yarn"], 256),
        (SCALINGS["yarn, the context unscaled"], 1024),
        (YARN | {"factor": 1e308}, 1 << 31),
        (YARN | {"factor": 0.5}, 256),
        (SCALINGS["longrope"], 256),
    ],
)
def test_a_scaling_from_the_stated_context_makes_the_context_longer(
    scaling: dict[str, Any], length: int
) -> None:
    config = SIZES | {"rope_parameters": scaling}
    assert context(config, rope(config, DIM)) == length


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "mrope"}, "rope_type must be one of .*, got 'mrope'"),
        ({"rope_type": "proportional"}, "rope_type must be one of .*, got 'proportional'"),
        ({"factor": 2.0}, r"a kind that scales where factor is given \(2.0\), got None"),
        ({"rope_type": "default", "factor": 4}, r"where factor is given \(4\), got 'default'"),
        ({"long_factor": [2.0] * 8}, "a kind that scales where long_factor is given"),
        ({"rope_type": "linear"}, "lacks factor"),
        ({"rope_type": "yarn"}, "yarn needs factor or original_max_position_embeddings, found neither"),
        (LONGROPE, "lacks original_max_position_embeddings, which longrope needs"),
        (LONGROPE | {"factor": 4.0}, "lacks original_max_position_embeddings, which longrope needs"),
        (YARN | {"wat": 3}, "rope_scaling of rope_type yarn must have no fields but factor, .*, got wat: 3"),
        ({"rope_type": "default", "wat": [3]}, r"of rope_type default must have .*, got wat: \[3\]"),
        (LLAMA3 | {"beta_fast": 32}, "of rope_type llama3 must have .*, got beta_fast: 32"),
        (
            {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64},
            "of rope_type dynamic must have no fields but factor, got original_max_position_embeddings: 64",
        ),
        (YARN | {"type": "linear"}, "must have one kind, got type 'linear' and rope_type 'yarn'"),
        ({"rope_type": "dynamic", "factor": -1}, "factor must be a positive number, got -1"),
        ({"rope_type": "dynamic", "factor": 10**400}, "factor must be a positive number"),
        (
            LLAMA3 | {"low_freq_factor": 4.0},
            r"low_freq_factor must be below high_freq_factor \(4.0\), got 4.0",
        ),
        (YARN | {"truncate": 1}, "truncate must be true or false, got 1"),
        (
            YARN | {"original_max_position_embeddings": 0},
            "original_max_position_embeddings must be an integer",
        ),
        (YARN | {"rope_theta": 1}, "rope_theta must be above 1, got 1.0"),
        (YARN | {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        (SCALINGS["longrope"] | {"short_factor": [1.0]}, "short_factor must have 8 numbers, got 1"),
        (SCALINGS["longrope"] | {"long_factor": None}, "lacks long_factor"),
        (SCALINGS["longrope"] | {"long_factor": [0.0] * 8}, "long_factor must be a positive number, got 0.0"),
        (LONGROPE | {"original_max_position_embeddings": 1}, "must be above 1 for longrope, got 1"),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        rope(SIZES | {"rope_scaling": scaling}, DIM)


def test_dynamic_scaling_of_one_pair_is_refused() -> None:
    with pytest.raises(ModelError, match="needs more than 2 rotated values a head, got 2"):
        rope(SIZES | {"rope_scaling": SCALINGS["dynamic"]}, 2)


@pytest.mark.parametrize("rope_type", ["linear", "yarn", "llama3"])
def test_one_scaling_may_be_said_twice_but_not_in_two_ways(rope_type: str) -> None:
    scaling = SCALINGS[rope_type]
    once = SIZES | {"rope_theta": THETA, "rope_scaling": scaling}
    named = {"type": rope_type, **scaling, "factor": int(scaling["factor"])}
    twice = {
        "rope_scaling": named,
        "rope_parameters": {"rope_theta": THETA, **scaling, "factor": named["factor"]},
    }
    assert rope(once | twice, DIM) == rope(once | {"rope_scaling": named}, DIM)
    for other in (scaling | {"factor": 7}, {"rope_type": "default"}, scaling | {"rope_theta": 7.0}):
        message = "rope_scaling must say what rope_parameters says .*, got "
        with pytest.raises(ModelError, match=message):
            rope(once | {"rope_parameters": other}, DIM)


PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 3.1": {
        "max_position_embeddings": 131_072,
        "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192},
    },
    "Qwen 2.5, its context extended": {
        "max_position_embeddings": 32_768,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
    },
    "Yarn-Llama-2": {
        "max_position_embeddings": 65_536,
        "rope_scaling": {
            "type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "finetuned": True,
        },
    },
    "gpt-oss": {
        "max_position_embeddings": 131_072,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
    },
    "Phi-3": {
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {name: value for name, value in LONGROPE.items() if name != "rope_type"}
        | {"type": "longrope"},
    },
}
FACTORS = {
    "Llama 3.1": 8.0,
    "Qwen 2.5, its context extended": 4.0,
    "Yarn-Llama-2": 16.0,
    "gpt-oss": 32.0,
    "Phi-3": 32.0,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_scaling_is_read_as_published_models_write_it(model: str) -> None:
    found = rope(SIZES | PUBLISHED[model], DIM)
    assert found.kind != RopeKind.DEFAULT
    assert found.factor == FACTORS[model]
