"""Cosines and sines equal those of transformers."""

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from headway.model.rotary import Rotary
from headway.model.spec import Rope, RopeKind

LENGTH = 4096
LONG = {"short_factor": [1.0 + i for i in range(8)], "long_factor": [3.0 + i * i for i in range(8)]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def longrope(original_max_len: int) -> Rope:
    factor = LENGTH / original_max_len
    return Rope(
        theta=1e4,
        dim=16,
        kind=RopeKind.LONGROPE,
        original_max_len=original_max_len,
        attention_factor=math.sqrt(1 + math.log(factor) / math.log(original_max_len)),
        short_factors=tuple(LONG["short_factor"]),
        long_factors=tuple(LONG["long_factor"]),
    )


@pytest.mark.parametrize(
    ("rope", "parameters"),
    [
        (Rope(theta=10_000.0, dim=32), {"rope_type": "default"}),
        (Rope(theta=500_000.0, dim=128), {"rope_type": "default"}),
        (Rope(theta=1e4, dim=64, kind=RopeKind.LINEAR, factor=4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            Rope(theta=5e5, dim=64, kind=RopeKind.LLAMA3, original_max_len=512, **LLAMA3),
            {"rope_type": "llama3", "original_max_position_embeddings": 512, **LLAMA3},
        ),
        (
            Rope(theta=1e4, dim=64, kind=RopeKind.DYNAMIC, factor=2.0, original_max_len=1024),
            {"rope_type": "dynamic", "factor": 2.0},
        ),
        (
            Rope(
                theta=1e4,
                dim=64,
                kind=RopeKind.YARN,
                factor=8.0,
                original_max_len=512,
                attention_factor=0.1 * math.log(8) + 1,
            ),
            {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512},
        ),
        (
            Rope(
                theta=15e4,
                dim=64,
                kind=RopeKind.YARN,
                factor=32.0,
                original_max_len=128,
                attention_factor=1.5,
                beta_fast=16.0,
                beta_slow=2.0,
                truncate=False,
            ),
            {
                "rope_type": "yarn",
                "factor": 32.0,
                "original_max_position_embeddings": 128,
                "attention_factor": 1.5,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "truncate": False,
            },
        ),
        (
            longrope(original_max_len=512),
            {"rope_type": "longrope", **LONG, "original_max_position_embeddings": 512},
        ),
        (
            longrope(original_max_len=4096),
            {"rope_type": "longrope", **LONG, "original_max_position_embeddings": 4096},
        ),
    ],
    ids=[
        "default",
        "large theta",
        "linear",
        "llama3",
        "dynamic",
        "yarn",
        "yarn, all fields",
        "longrope beyond its original length",
        "longrope within",
    ],
)
def test_cosines_and_sines_equal_those_of_transformers(rope: Rope, parameters: dict[str, Any]) -> None:
    config = LlamaConfig(
        hidden_size=2 * rope.dim,
        num_attention_heads=2,
        max_position_embeddings=1024 if rope.kind is RopeKind.DYNAMIC else LENGTH,
        rope_parameters={"rope_theta": rope.theta, **parameters},
    )
    positions, lengths = torch.arange(LENGTH), torch.full((LENGTH,), LENGTH)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    half = rope.dim // 2
    our_cos, our_sin = Rotary(rope, torch.device("cpu")).cos_sin(positions, lengths, lengths)
    assert our_cos.dtype == torch.float32
    assert torch.equal(our_cos, cos[0])
    assert torch.equal(our_sin[:, half:], sin[0, :, half:])
    assert torch.equal(our_sin[:, :half], -sin[0, :, :half])


def test_each_token_has_the_frequencies_of_its_own_sequence() -> None:
    positions = torch.tensor([3, 600, 3, 600])
    lengths = torch.tensor([4, 601, 900, 900])
    limits = torch.tensor([512, 512, 513, 900])
    for rope in (
        Rope(theta=1e4, dim=16, kind=RopeKind.DYNAMIC, factor=2.0, original_max_len=512),
        longrope(original_max_len=512),
    ):
        rotary = Rotary(rope, torch.device("cpu"))
        together = rotary.cos_sin(positions, lengths, limits)
        for token in range(4):
            one = slice(token, token + 1)
            for whole, alone in zip(
                together, rotary.cos_sin(positions[one], lengths[one], limits[one]), strict=True
            ):
                assert torch.equal(whole[one], alone)
        assert not torch.equal(together[0][1], together[0][3])
