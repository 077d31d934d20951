"""Model families by `model_type` of config.json. A family is a module: data, and two functions."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from headway.model.families import (
    bloom,
    falcon,
    gemma2,
    gemma3,
    gemma3_text,
    gpt2,
    gpt_neox,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    mpt,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    starcoder2,
)
from headway.model.spec import DecoderSpec
from headway.model.stored import Weights


class Family(Protocol):
    """What a family's module holds.

    PREFIX: of the names of all but the head, which a checkpoint saved without the head lacks.
    HARMLESS: patterns of checkpoint tensors that are not needed, such as saved rotary tables.
    """

    @property
    def ARCHITECTURES(self) -> tuple[str, ...]: ...  # noqa: N802

    @property
    def PREFIX(self) -> str: ...  # noqa: N802

    @property
    def HARMLESS(self) -> tuple[str, ...]: ...  # noqa: N802

    def spec(self, config: Mapping[str, Any]) -> DecoderSpec:
        """The decoder that config.json describes; raises ModelError for what the family cannot do."""

    def weights(self, spec: DecoderSpec) -> Weights:
        """Where a checkpoint has each part that `headway.model.layout` names: `embed`, `layers.{i}.q`, ...

        The value is the tensor's name less `.weight` or `.bias`, or a `Stored` where more is to be said.
        Parts that a checkpoint has in one tensor stand under its name in the layout: `layers.{i}.qkv`.
        """


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "bloom": bloom,
        "falcon": falcon,
        "gemma2": gemma2,
        "gemma3": gemma3,
        "gemma3_text": gemma3_text,
        "gpt2": gpt2,
        "gpt_neox": gpt_neox,
        "gpt_oss": gpt_oss,
        "llama": llama,
        "mistral": mistral,
        "mixtral": mixtral,
        "mpt": mpt,
        "olmo2": olmo2,
        "phi3": phi3,
        "qwen2": qwen2,
        "qwen3": qwen3,
        "qwen3_moe": qwen3_moe,
        "starcoder2": starcoder2,
    }
)
