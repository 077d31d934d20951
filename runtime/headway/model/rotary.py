"""Rotary embedding: the frequencies of each kind, and cosines and sines of the positions of a step.

Computed from the positions once a step for all layers: a table for 128k positions would take 128 MiB.

Shape suffixes: T tokens, R rotated values of a head, F = R / 2 frequencies.
"""

import math

import torch
from torch import Tensor

from headway.model.spec import Rope, RopeKind


class Rotary:
    """One rotary embedding on a device."""

    def __init__(self, rope: Rope, device: torch.device) -> None:
        self._rope = rope
        self._exponent_F = torch.arange(0, rope.dim, 2, dtype=torch.float32, device=device) / rope.dim
        # computed on the host, so that every device has the same
        self._frequency_R = _signed(_frequencies(rope)).to(device)
        self._long_R = _signed(_frequencies(rope, long=True)).to(device)

    def cos_sin(self, positions_T: Tensor, lengths_T: Tensor, limits_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines, and sines with the first half negated, in float32 -> (cos_TR, sin_TR).

        Cosine is even and sine odd, so negated frequencies give at once the signed sines of `kv_write`.
        lengths_T, limits_T: of each token's sequence, as in `ModelInput`, for the kinds that go by them.
        """
        angle_TR = positions_T[:, None] * self._frequency(lengths_T, limits_T)
        cos_TR, sin_TR = angle_TR.cos(), angle_TR.sin()
        factor = self._rope.attention_factor
        return (cos_TR, sin_TR) if factor == 1 else (cos_TR * factor, sin_TR * factor)

    def _frequency(self, lengths_T: Tensor, limits_T: Tensor) -> Tensor:
        """[R], or [T, R] where it depends on the length.

        LONGROPE decides once a sequence: keys turned with short and long factors cannot stand beside each
        other. (transformers turns all keys anew when a sequence grows beyond the original length.)
        """
        rope = self._rope
        if rope.kind is RopeKind.LONGROPE:
            is_long_T1 = (limits_T > rope.original_max_len)[:, None]
            return torch.where(is_long_T1, self._long_R, self._frequency_R)
        if rope.kind is RopeKind.DYNAMIC:
            lengths_T1 = lengths_T[:, None].clamp(min=rope.original_max_len)
            growth_T1 = rope.factor * lengths_T1 / rope.original_max_len - (rope.factor - 1)
            theta_T1 = rope.theta * growth_T1 ** (rope.dim / (rope.dim - 2))
            return _signed(1.0 / theta_T1**self._exponent_F)
        return self._frequency_R


def _signed(frequency_F: Tensor) -> Tensor:
    """Of each rotated value, those of the first half negated."""
    return torch.cat((-frequency_F, frequency_F), -1)


def _frequencies(rope: Rope, *, long: bool = False) -> Tensor:
    """Of each rotated pair -> float32 [F]. long: of a sequence beyond `original_max_len`, for LONGROPE."""
    wave_F = rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim)
    match rope.kind:
        case RopeKind.LINEAR:
            return 1.0 / wave_F / rope.factor
        case RopeKind.LLAMA3:
            return _llama3(rope, 1.0 / wave_F)
        case RopeKind.YARN:
            return _yarn(rope, wave_F)
        case RopeKind.LONGROPE:
            return 1.0 / (torch.tensor(rope.long_factors if long else rope.short_factors) * wave_F)
        case _:
            return 1.0 / wave_F


def _llama3(rope: Rope, frequency_F: Tensor) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between blended (Llama 3.1)."""
    length_F = 2 * math.pi / frequency_F
    blend_F = (rope.original_max_len / length_F - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended_F = (1 - blend_F) * frequency_F / rope.factor + blend_F * frequency_F
    scaled_F = torch.where(
        length_F > rope.original_max_len / rope.low_freq_factor, frequency_F / rope.factor, blended_F
    )
    return torch.where(length_F < rope.original_max_len / rope.high_freq_factor, frequency_F, scaled_F)


def _yarn(rope: Rope, wave_F: Tensor) -> Tensor:
    """Pairs that turn fewer than `beta_slow` times in the original context are slowed by `factor`, those that
    turn more than `beta_fast` times kept, those between blended (arXiv 2309.00071).
    """
    low, high = (_pair_that_turns(rope, turns) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    ramp_F = (torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)
    kept_F = 1 - ramp_F.clamp(0, 1)
    return 1.0 / (rope.factor * wave_F) * (1 - kept_F) + 1.0 / wave_F * kept_F


def _pair_that_turns(rope: Rope, turns: float) -> float:
    """The number, not always whole, of the pair that turns so often within the original context."""
    wanted = rope.original_max_len / (turns * 2 * math.pi)
    return rope.dim * math.log(wanted) / (2 * math.log(rope.theta))
