"""One request as the sequences that engines generate: n of them, each with its own id and seed."""

import secrets
from dataclasses import replace

from headway.core.errors import InvalidRequest
from headway.core.limits import BOUNDS, check_length, check_prompt, check_token_ids
from headway.core.request import EngineRequest, ReplicaInfo
from headway.core.sampling import SamplingParams
from headway.serving.model import ServedModel

_NUM_SEEDS = int(BOUNDS["seed"].max) + 1


def draw_seed() -> int:
    return secrets.randbelow(_NUM_SEEDS)


def max_prompt_tokens(info: ReplicaInfo) -> int:
    """One token less than a sequence may have: that one is generated. The pool is in the figure already."""
    return info.max_model_len - 1


def make_sequences(
    model: ServedModel,
    info: ReplicaInfo,
    *,
    request_id: str,
    prompt_ids: tuple[int, ...],
    sampling: SamplingParams,
    resume_token_ids: tuple[int, ...] = (),
) -> list[EngineRequest]:
    """The n sequences of a request; a seed is drawn where `sampling` has none.

    Raises InvalidRequest where the request does not fit the model or the replica. An engine's ids end in
    random digits: a request that is sent again must not meet late events of its first try.
    """
    check_prompt(prompt_ids, vocab_size=info.vocab_size, max_prompt_tokens=max_prompt_tokens(info))
    check_token_ids("stop_token_ids", sampling.stop_token_ids, info.vocab_size)
    _check_resumption(resume_token_ids, sampling, info)
    if sampling.stop and model.tokenizer is None:
        raise InvalidRequest("stop", f"empty: model {model.name} has no tokenizer", sampling.stop)
    eos = () if sampling.ignore_eos else model.eos_token_ids
    seed = draw_seed() if sampling.seed is None else sampling.seed
    first = EngineRequest(
        request_id="",
        prompt_ids=prompt_ids,
        sampling=sampling,
        seed=seed,
        stop_token_ids=tuple(dict.fromkeys((*eos, *sampling.stop_token_ids))),
        output_ids=resume_token_ids,
    )
    return [
        replace(
            first,
            request_id=f"{request_id}/{index}/{secrets.token_hex(4)}",
            seed=(seed + index) % _NUM_SEEDS,
        )
        for index in range(sampling.n)
    ]


def _check_resumption(token_ids: tuple[int, ...], sampling: SamplingParams, info: ReplicaInfo) -> None:
    check_length("resume_token_ids", token_ids)
    check_token_ids("resume_token_ids", token_ids, info.vocab_size)
    if token_ids and sampling.n > 1:
        raise InvalidRequest("resume_token_ids", f"empty where n is {sampling.n}", len(token_ids))
    if len(token_ids) > sampling.max_tokens:
        limit = f"at most max_tokens ({sampling.max_tokens}) long"
        raise InvalidRequest("resume_token_ids", limit, len(token_ids))
