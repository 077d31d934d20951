"""`headway bench attention`, `kernels`, `all-reduce`: operations on GPUs beside other ways to do the same."""

from enum import StrEnum
from typing import Annotated

import typer

from headway.cli.figures import Output, check_output, or_dash, report


class Phase(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


Repeats = Annotated[int, typer.Option(min=1, help="Timed runs of each; the median counts.")]


def attention(
    repeats: Repeats = 15,
    output: Output = None,
    phase: Annotated[Phase, typer.Option(help="What to measure.")] = Phase.BOTH,
) -> None:
    """The attention kernels on one GPU, beside PyTorch's flash and cuDNN backends in the same run."""
    check_output(output)
    from headway.bench.attention import (
        DECODE,
        DECODE_NAMES,
        PAGED,
        PREFILL,
        PREFILL_NAMES,
        decode_us,
        prefill_us,
    )

    device = _gpu("attention")
    prefill = [(row, prefill_us(row, repeats)) for row in PREFILL if phase != Phase.DECODE]
    speeds = [
        (str(row), *(or_dash(row.tflops(us.get(name)), "{:.0f}") for name in PREFILL_NAMES))
        for row, us in prefill
    ]
    columns: tuple[str, ...] = ("causal prefill", *PREFILL_NAMES)
    report(f"Attention on {device}, bfloat16, TFLOP/s", columns, speeds, None, None)
    decode = [(row, decode_us(row, repeats)) for row in DECODE if phase != Phase.PREFILL]
    times = [
        (
            str(row),
            *(or_dash(us.get(name), "{:.1f}") for name in DECODE_NAMES),
            f"{row.kv_bytes / us[PAGED] / 1e6:.2f}",
        )
        for row, us in decode
    ]
    columns = ("decode, a layer", *DECODE_NAMES, "ours, TB/s")
    figures = [{"row": str(row), "us": us} for row, us in (*prefill, *decode)]
    report(f"Decode on {device}, bfloat16, microseconds", columns, times, figures, output)


def kernels(
    op: Annotated[list[str] | None, typer.Option(help="This operation only; may be repeated.")] = None,
    repeats: Repeats = 15,
    output: Output = None,
) -> None:
    """Every other operation on one GPU, beside PyTorch's way to do the same."""
    check_output(output)
    from headway.bench.kernels import cases, measure

    device = _gpu("kernels")
    figures = []
    for case in cases(op):
        figures.append(measure(case, repeats))
        times = ", ".join(f"{name} {us:.1f}" for name, us in figures[-1].us.items())
        typer.echo(f"{case.op}, {case.shape}: {times}", err=True)  # it takes minutes: say where it is
    rows = [
        (
            one.op,
            one.shape,
            f"{one.us['ours']:.1f}" if "ours" in one.us else "-",
            or_dash(one.tb_per_s, "{:.2f}"),
            *(", ".join(f"{name} {us:.1f}" for name, us in one.us.items() if name != "ours"),),
            or_dash(one.relative, "{:.2f}x"),
        )
        for one in figures
    ]
    columns = ("operation", "shape", "ours, us", "TB/s", "others, us", "relative to the best of them")
    told = [{"op": one.op, "shape": one.shape, "us": one.us} for one in figures]
    report(f"Operations on {device}, microseconds", columns, rows, told, output)


def all_reduce(
    ranks: Annotated[int, typer.Option(min=2, max=8, help="GPUs of this host, a process each.")] = 2,
    output: Output = None,
) -> None:
    """The all-reduce of several GPUs: NCCL, torch's symmetric memory, and ours with and without the norm."""
    check_output(output)
    from headway.bench.all_reduce import CONTENDERS, SIZES, measure

    us = measure(ranks)
    rows = [(name, *(or_dash(us.get(name, {}).get(size), "{:.1f}") for size in SIZES)) for name in CONTENDERS]
    columns = ("way", *(f"{size >> 10} KB" for size in SIZES))
    report(f"All-reduce over {ranks} GPUs in CUDA graphs, microseconds", columns, rows, us, output)


def _gpu(what: str) -> str:
    """The GPU's name. Raises StartError where there is none."""
    import torch

    from headway.core.errors import StartError

    if not torch.cuda.is_available():
        raise StartError(f"bench {what} needs a GPU, this host has none")
    return torch.cuda.get_device_name()
