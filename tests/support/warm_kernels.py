"""Which kernels do requests need that the warm-up has not launched? On a machine without a GPU; nothing is
compiled, or executed but for what moves data, and tokens are all 0.

`python warm_kernels.py FOLDER` runs a model's warm-up, then serves requests of many kinds. It prints a JSON
line for each variant of a kernel that these launch: the kernel, the number of the warm-up's first step that
launches the variant, and if there is none the arguments whose kinds were new. TRITON_INTERPRET must not be
set.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from driving import make_request, run
from headway.core.config import EngineConfig
from headway.core.request import EngineRequest
from headway.engine.build import build_engine
from headway.engine.local import SoloRanks
from headway.model.collectives import SoloCollectives
from headway.worker.shard import OPS, Shard
from headway_kernels import tiles_matmul
from hopper import AbsentGpu

PAGES = 1024
Variant = tuple[str, tuple[tuple[str, str], ...]]  # a kernel, and the kind of each argument and option
SAMPLING: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 0.7, "min_p": 0.1},
    {"temperature": 0.7, "top_p": 0.9, "min_p": 0.1, "logprobs": 2},
    {"repetition_penalty": 1.2},
    {"temperature": 1.0, "presence_penalty": 0.5},
    {"temperature": 1.0, "frequency_penalty": 0.5, "top_p": 0.5, "logprobs": 0},
    {"min_tokens": 2, "stop_token_ids": (1, 2)},
)


def variant(kernel: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Variant:
    """What Triton compiles a launch for."""
    binder = kernel.device_caches[driver.active.get_current_device()][-1]
    bound, kinds, others = binder(*arguments, debug=False, **options)
    name = f"{kernel.module.removeprefix('headway_kernels.')}.{kernel.__name__}"
    return name, (*zip(bound, map(str, kinds), strict=True), ("options", str(others)))


def workloads() -> Iterator[list[EngineRequest]]:
    """Requests that are served together: alone, in odd numbers, of each kind of sampling, and all mixed."""
    alone = {1: 4, 2: 20, 15: 3, 100: 3, 230: 40, 1024: 2, 1500: 3, 2100: 2}  # prompt: new tokens
    for length, num_tokens in alone.items():
        yield _requests([length], [{}], num_tokens)
    for num_rows in (3, 7, 33, 64):
        for sampling in SAMPLING:
            yield _requests([5] * num_rows, [sampling], 2)
    lengths = [1, 5, 17, 40, 300, 1100, 9, 64, 250, 2, 31]
    yield _requests(lengths * 3, SAMPLING, 6)


def _requests(lengths: list[int], sampling: Any, num_tokens: int) -> list[EngineRequest]:
    return [
        make_request(
            str(index), (index + 3,) * length, max_tokens=num_tokens, **sampling[index % len(sampling)]
        )
        for index, length in enumerate(lengths)
    ]


def new_kinds(found: Variant, known: Iterable[Variant]) -> dict[str, str]:
    """The arguments whose kinds differ from those of the nearest known variant, as known -> found."""
    name, kinds = found
    others = [dict(other) for kernel, other in known if kernel == name]
    differences = [
        {key: f"{other[key]} -> {kind}" for key, kind in kinds if other[key] != kind} for other in others
    ]
    return min(differences, key=len, default={})


def main(folder: str) -> None:
    driver.set_active(AbsentGpu())
    OPS["cpu"] = "headway_kernels.gpu"
    torch.empty = torch.zeros  # tokens that nobody writes are looked up nevertheless
    torch.nn.functional.linear = lambda x, weight, bias=None: x.new_zeros(*x.shape[:-1], len(weight))
    tiles_matmul.WORTH_GEMV = ((1 << 20, 16),)  # small models have no weight of 32 MiB
    launched: dict[Variant, None] = {}

    def only_note(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launched[variant(kernel, arguments, options)] = None

    JITFunction.run = only_note
    config = EngineConfig(device="cpu", dtype="bfloat16", max_num_tokens=2048)
    shard = Shard(Path(folder), config, SoloCollectives(), torch.device("cpu"))
    num_pages = (PAGES,) * len(shard.page_groups)

    warm: dict[Variant, int] = {}
    rank = shard.ready(num_pages)
    for plan in shard.warm_up_plans():
        rank.launch(plan)
        for found in launched:
            warm.setdefault(found, plan.step)
        launched.clear()

    engine = build_engine(shard, SoloRanks(shard.ready(num_pages)), num_pages)
    for requests in workloads():
        run(engine, requests)
    for found in launched:
        step = warm.get(found)
        told = {"kernel": found[0], "step": step}
        print(json.dumps(told if step is not None else {**told, "new": new_kinds(found, warm)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
