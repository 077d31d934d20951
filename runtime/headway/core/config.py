"""Settings of a replica: frozen, checked at construction."""

from dataclasses import dataclass

from headway.core.errors import ConfigError, shorten

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How one replica runs a model.

    tp: ranks, each with a shard of the attention heads.
    device, dtype: "auto" takes a GPU where there is one; float32 on a CPU, the checkpoint's on a GPU.
    max_model_len: tokens a sequence may have; None takes the model's context length.
    page_size: tokens a page of the KV pool holds.
    num_pages: pages of the pool for layers without a window (where all have one, for those with the
        widest); other layers get as many as their windows can use. None sizes all from what is free.
    memory_fraction: of the device's memory that weights, pool and activations may take together.
    max_num_rows: sequences that may run at once.
    max_num_tokens: tokens computed a step: the budget that chunked prefill shares with decoding.
    start_timeout_s: a gang that has not started by then is stopped, with the reason.
    step_timeout_s: a collective that waits longer fails the step.
    """

    tp: int = 1
    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    page_size: int = 16
    num_pages: int | None = None
    memory_fraction: float = 0.9
    max_num_rows: int = 64
    max_num_tokens: int = 1024
    start_timeout_s: float = 300.0
    step_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        _one_of("device", self.device, DEVICES)
        _one_of("dtype", self.dtype, DTYPES)
        _integer("tp", self.tp, 1024)
        _integer("page_size", self.page_size, 1024)
        _integer("max_num_rows", self.max_num_rows, 65_536)
        _integer("max_num_tokens", self.max_num_tokens, 1 << 20)
        _within("memory_fraction", self.memory_fraction, 0.01, 1.0)
        _within("start_timeout_s", self.start_timeout_s, 1, 86_400)
        _within("step_timeout_s", self.step_timeout_s, 0.1, 86_400)
        for name in ("max_model_len", "num_pages"):
            value = getattr(self, name)
            if value is not None:
                _integer(name, value, 1 << 31)

    def model_len(self, context: int) -> int:
        """Tokens a sequence may have in a model with `context`. Raises ConfigError for more than that."""
        if self.max_model_len is not None and self.max_model_len > context:
            limit = f"{context} (the model's context)"
            raise ConfigError(f"max_model_len must be at most {limit}, got {self.max_model_len}")
        return self.max_model_len or context


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _integer(name: str, value: object, high: int) -> None:
    if type(value) is not int or not 1 <= value <= high:
        raise ConfigError(f"{name} must be an integer from 1 to {high}, got {shorten(value)}")


def _within(name: str, value: object, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        raise ConfigError(f"{name} must be from {low:g} to {high:g}, got {value!r}")
