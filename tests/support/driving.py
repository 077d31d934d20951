"""An engine driven step by step, its books checked after each."""

from collections.abc import Iterable
from typing import Any

from headway.core.request import EngineRequest, TokenEvent
from headway.core.sampling import SamplingParams
from headway.engine.engine import Engine

MAX_STEPS = 5_000  # far more than any test takes: an engine that is stuck fails instead of hanging


def make_request(
    name: str,
    prompt: tuple[int, ...],
    *,
    stop_token_ids: tuple[int, ...] = (),
    output_ids: tuple[int, ...] = (),
    seed: int = 7,
    **sampling: Any,
) -> EngineRequest:
    """Greedy, unless `sampling` says otherwise."""
    return EngineRequest(
        request_id=name,
        prompt_ids=prompt,
        sampling=SamplingParams(**{"temperature": 0.0, **sampling}),
        seed=seed,
        stop_token_ids=stop_token_ids,
        output_ids=output_ids,
    )


def run(engine: Engine, requests: Iterable[EngineRequest]) -> dict[str, list[TokenEvent]]:
    """Every request to its end: its events. Pages are checked after each step, and all free at the end."""
    events: dict[str, list[TokenEvent]] = {}
    for request in requests:
        events[request.request_id] = []
        engine.submit(request)
    for _ in range(MAX_STEPS):
        if not engine.has_work:
            break
        for event in engine.step():
            events[event.request_id].append(event)
        engine.check()
    assert not engine.has_work, f"not done after {MAX_STEPS} steps"
    assert engine.load.free_pages == engine.load.num_pages
    return events


def tokens(events: Iterable[TokenEvent]) -> tuple[int, ...]:
    """The tokens of one request's events, which must end with the only terminal one."""
    *others, last = events
    assert last.finish_reason is not None, last
    assert not any(event.terminal for event in others)
    return tuple(event.token_id for event in (*others, last) if event.token_id is not None)
