"""Headway: multi-GPU inference for language models. Heavy parts load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.core.errors import HeadwayError
    from headway.core.request import Completion
    from headway.core.sampling import SamplingParams
    from headway.core.version import __version__
    from headway.llm import LLM
    from headway.serving.client import AsyncClient, Client

__all__ = ["LLM", "AsyncClient", "Client", "Completion", "HeadwayError", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "headway.llm",
    "AsyncClient": "headway.serving.client",
    "Client": "headway.serving.client",
    "Completion": "headway.core.request",
    "HeadwayError": "headway.core.errors",
    "SamplingParams": "headway.core.sampling",
    "__version__": "headway.core.version",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headway' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
