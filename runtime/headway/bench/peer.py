"""transformers' generate on the same model, device and dtype: the peer that runs in the same process.

transformers is no dependency of the runtime; without it the comparison is left out, and said to be.
"""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch


def transformers_ms_per_token(
    folder: Path, prompt: Sequence[int], *, num_tokens: int, device: str, dtype: str, repeats: int
) -> float | None:
    """Median milliseconds a token of greedy `generate`, prompt included; None without transformers."""
    if find_spec("transformers") is None:
        return None
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    place = torch.device("cpu" if device == "cpu" else "cuda")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model = model.eval().to(place)
    input_ids = torch.tensor([list(prompt)], device=place)
    options = {
        "max_new_tokens": num_tokens,
        "min_new_tokens": num_tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(input_ids),
    }
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(input_ids, **options)
        seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds[1:]) / num_tokens
