"""Decoding speed of one replica in this process: a batch of streams, and where a step's time goes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.bench.timing import Stopwatch
from headway.core.config import EngineConfig
from headway.core.errors import ConfigError
from headway.core.request import EngineRequest
from headway.core.sampling import SamplingParams
from headway.engine.build import build_engine, shard_facts
from headway.engine.engine import Engine
from headway.engine.local import SoloRanks
from headway.model.collectives import SoloCollectives
from headway.worker.shard import Shard, pick_device

GREEDY_SEED = 0


@dataclass(frozen=True, kw_only=True)
class DecodeFigures:
    """A batch of `num_streams`, each of `num_tokens` outputs, by one replica with one rank.

    outside_ms: of a step, what is not the decoder's forward pass: plan, tables, sampling, results.
    It is told on a CPU only: on a GPU the forward pass returns before it is done.
    """

    device: str
    dtype: str
    num_streams: int
    num_prompt_tokens: int
    num_tokens: int
    ttft_ms: float
    ms_per_token: float
    tokens_per_s: float
    step_ms: float
    outside_ms: float | None


def check_fits(num_prompt_tokens: int, num_tokens: int, max_model_len: int) -> None:
    """Raise ConfigError where streams would end early: figures would be of fewer tokens than they say."""
    room = max_model_len - num_prompt_tokens
    if num_tokens > room:
        limit = f"at most {room} (the model's context less the prompt)"
        raise ConfigError(f"tokens must be {limit}, got {num_tokens}")


class DecodeBench:
    """A loaded model that can be timed again and again."""

    def __init__(self, folder: Path, config: EngineConfig) -> None:
        shard = Shard(folder, config, SoloCollectives(), pick_device(config.device))
        num_pages = shard_facts(shard).num_pages
        rank = shard.ready(num_pages)
        self._forward = Stopwatch()
        rank.decoder.forward = self._forward.around(rank.decoder.forward)  # type: ignore[method-assign]
        self._engine = build_engine(shard, SoloRanks(rank), num_pages)
        self._num_requests = 0

    def run(self, prompt: Sequence[int], *, num_streams: int, num_tokens: int) -> DecodeFigures:
        """Time greedy decoding after `prompt`; the first run of a shape warms up. Raises ConfigError."""
        check_fits(len(prompt), num_tokens, self._engine.info.max_model_len)
        for _ in range(num_streams):
            self._submit(tuple(prompt), num_tokens)
        start = time.perf_counter()
        while not self._engine.step():  # until the first tokens
            pass
        first = time.perf_counter()
        self._forward.seconds = 0.0
        num_steps = 0
        while self._engine.has_work:
            self._engine.step()
            num_steps += 1
        seconds = time.perf_counter() - first
        info = self._engine.info
        step_ms = 1e3 * seconds / num_steps
        return DecodeFigures(
            device=info.device,
            dtype=info.dtype,
            num_streams=num_streams,
            num_prompt_tokens=len(prompt),
            num_tokens=num_tokens,
            ttft_ms=1e3 * (first - start),
            ms_per_token=1e3 * seconds / (num_tokens - 1),
            tokens_per_s=num_streams * (num_tokens - 1) / seconds,
            step_ms=step_ms,
            outside_ms=step_ms - 1e3 * self._forward.seconds / num_steps if info.device == "cpu" else None,
        )

    def _submit(self, prompt: tuple[int, ...], num_tokens: int) -> None:
        self._num_requests += 1
        self._engine.submit(
            EngineRequest(
                request_id=str(self._num_requests),
                prompt_ids=prompt,
                sampling=SamplingParams(temperature=0, max_tokens=num_tokens),
                seed=GREEDY_SEED,
            )
        )

    @property
    def engine(self) -> Engine:
        return self._engine

    def close(self) -> None:
        self._engine.close()
