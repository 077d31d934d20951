"""`headway plan`: what each rank of a model would hold, from its config.json alone."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import typer

from headway.cli.table import print_table
from headway.cli.units import format_bytes, parse_bytes
from headway.core.config import EngineConfig
from headway.core.errors import ConfigError, counted
from headway.model.folder import read_spec, resolve
from headway.model.spec import DecoderSpec
from headway.model.weights import ShardPlan, shard_plan
from headway.sharding.pages import longest_sequence, page_groups, share_out

CONFIG = EngineConfig()
MANY_ROWS = 1024  # so many that they seldom bound the KV tokens: a plan tells what memory holds
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class RankFigures:
    """What one rank holds.

    page_bytes: of a page in all layers. num_pages: that its memory has for each group of layers.
    kv_tokens: cached tokens that fit beside its weights, as far as the rows could fill them.
    """

    rank: int
    num_q_heads: int
    num_kv_heads: int
    num_replicas: int
    weight_bytes: int
    page_bytes: int
    num_pages: tuple[int, ...]
    kv_tokens: int


@dataclass(frozen=True, kw_only=True)
class PlanFigures:
    """What a plan comes to.

    windows: of the groups of layers; None sees all. num_pages, kv_tokens: of the rank with least room.
    max_context: the longest sequence, by the model and the pages.
    imbalance: how far the largest rank's weight bytes lie above the mean, as a fraction of it.
    """

    tp: int
    ranks: tuple[RankFigures, ...]
    windows: tuple[int | None, ...]
    num_pages: tuple[int, ...]
    kv_tokens: int
    max_context: int
    kv_replicas: int
    replicated_bytes_per_token: int
    imbalance: float


def plan(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, or demo.")],
    tp: Annotated[int, typer.Option(help="Ranks to share the model over.")] = 1,
    gpu_memory: Annotated[str, typer.Option(help="Memory of each GPU.")] = "80GiB",
    max_num_rows: Annotated[
        int, typer.Option(help=f"Sequences at once; serve takes {CONFIG.max_num_rows} unless told otherwise.")
    ] = MANY_ROWS,
    compare: Annotated[bool, typer.Option("--compare", help="Show 1 to N ranks side by side.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")] = False,
) -> None:
    """Show how a model's heads, weights and KV pages fall on its ranks.

    An error where they do not fit; of the fewer ranks of a comparison, those that do not have no context.
    """
    memory = parse_bytes("gpu-memory", gpu_memory)
    spec = read_spec(resolve(model, weights=False))
    config = replace(CONFIG, max_num_rows=max_num_rows)
    last = figures(spec, tp, memory, config)
    _check_room(last, memory)
    plans = [*(figures(spec, n, memory, config) for n in range(1, tp)), last] if compare else [last]
    if as_json:
        value = [asdict(one) for one in plans] if compare else asdict(last)
        found = {"model": model, "assumptions": _assumptions(spec, memory, config)}
        typer.echo(json.dumps({**found, "plans" if compare else "plan": value}, indent=2))
        return
    if compare:
        _print_comparison(model, plans)
    else:
        _print_ranks(model, spec, last)
    typer.echo(
        f"assumed: {format_bytes(memory)} x {CONFIG.memory_fraction:g} a rank, {spec.dtype}, pages of "
        f"{config.page_size} tokens, {config.max_num_rows:,} rows; no activations"
    )


def figures(spec: DecoderSpec, tp: int, memory_bytes: int, config: EngineConfig = CONFIG) -> PlanFigures:
    """`memory_bytes`: of each rank's device; `config`: how many rows share it.

    Raises ConfigError where `tp` ranks cannot share the model.
    """
    shards = shard_plan(spec, tp)
    ranks = tuple(_rank_figures(spec, shards, rank, memory_bytes, config) for rank in range(tp))
    weights = [rank.weight_bytes for rank in ranks]
    num_pages = tuple(map(min, zip(*(rank.num_pages for rank in ranks), strict=True)))
    replicated = shards.heads.replicated_bytes(
        head_dim=spec.head_dim,
        dtype_bytes=DTYPE_BYTES[spec.dtype],
        num_tokens=1,
        num_layers=spec.num_layers,
    )
    return PlanFigures(
        tp=tp,
        ranks=ranks,
        windows=spec.windows,
        num_pages=num_pages,
        kv_tokens=max(num_pages) * CONFIG.page_size,
        max_context=longest_sequence(
            spec.max_model_len, num_pages=num_pages, windows=spec.windows, page_size=CONFIG.page_size
        ),
        kv_replicas=shards.heads.kv_replicas,
        replicated_bytes_per_token=replicated,
        imbalance=max(weights) * tp / sum(weights) - 1,
    )


def _rank_figures(
    spec: DecoderSpec, shards: ShardPlan, rank: int, memory_bytes: int, config: EngineConfig
) -> RankFigures:
    heads, dtype_bytes = shards.heads.ranks[rank], DTYPE_BYTES[spec.dtype]
    weight_bytes = shards.rank(rank).target_bytes(dtype_bytes)
    sizes = spec.page_bytes(
        num_kv_heads=heads.num_kv_heads, page_size=CONFIG.page_size, dtype_bytes=dtype_bytes
    )
    groups = page_groups(spec.windows, sizes, config, spec.max_model_len)
    num_pages = share_out(_usable(memory_bytes) - weight_bytes, groups)
    return RankFigures(
        rank=rank,
        num_q_heads=heads.num_q_heads,
        num_kv_heads=heads.num_kv_heads,
        num_replicas=heads.num_replicas,
        weight_bytes=weight_bytes,
        page_bytes=sum(sizes),
        num_pages=num_pages,
        kv_tokens=max(num_pages) * CONFIG.page_size,
    )


def _usable(memory_bytes: int) -> int:
    """For weights and pages; the rest is activations and the driver's."""
    return int(memory_bytes * CONFIG.memory_fraction)


def _assumptions(spec: DecoderSpec, memory_bytes: int, config: EngineConfig) -> dict[str, object]:
    return {
        "gpu_memory_bytes": memory_bytes,
        "memory_fraction": CONFIG.memory_fraction,
        "activation_bytes": 0,
        "dtype": spec.dtype,
        "page_size": CONFIG.page_size,
        "max_num_rows": config.max_num_rows,
        "max_num_tokens": config.max_num_tokens,
    }


def _check_room(plan: PlanFigures, memory_bytes: int) -> None:
    """Raise ConfigError unless every rank has room for its weights and a page."""
    fullest = max(plan.ranks, key=lambda rank: rank.weight_bytes + rank.page_bytes)
    if plan.kv_tokens:
        return
    need = f"{format_bytes(fullest.weight_bytes)} of weights and {format_bytes(fullest.page_bytes)} a page"
    limit = f"{CONFIG.memory_fraction:.0%} of gpu-memory is {format_bytes(_usable(memory_bytes))}"
    raise ConfigError(f"the weights do not fit: rank {fullest.rank} needs {need}, {limit}")


def _print_ranks(model: str, spec: DecoderSpec, plan: PlanFigures) -> None:
    heads = f"{spec.num_q_heads} query and {counted(spec.num_kv_heads, 'KV head')}"
    print_table(
        f"{model} on {counted(plan.tp, 'rank')}: {heads}, {spec.num_layers} layers, {spec.dtype}",
        ("rank", "q heads", "KV heads", "replicas", "weights", "page", "KV tokens"),
        (
            (
                rank.rank,
                rank.num_q_heads,
                rank.num_kv_heads,
                rank.num_replicas,
                format_bytes(rank.weight_bytes),
                format_bytes(rank.page_bytes),
                f"{rank.kv_tokens:,}",
            )
            for rank in plan.ranks
        ),
    )
    for group, window in enumerate(plan.windows):
        if window is not None:
            num_layers, tokens = spec.layer_groups.count(group), plan.num_pages[group] * CONFIG.page_size
            typer.echo(f"{num_layers} layers have a window of {window:,}: {tokens:,} KV tokens there")
    replicated = format_bytes(plan.replicated_bytes_per_token)
    typer.echo(f"a page is K and V of all layers; largest context {plan.max_context:,} tokens")
    typer.echo(f"weights: largest rank {plan.imbalance:.1%} above the mean; ", nl=False)
    typer.echo(f"{counted(plan.kv_replicas, 'KV head')} replicated, {replicated} a cached token")


def _print_comparison(model: str, plans: list[PlanFigures]) -> None:
    """One rank may have the most query heads and another the most KV heads: no row describes a rank."""
    rows: list[tuple[object, ...]] = []
    for plan in plans:
        rows.append(
            (
                plan.tp,
                max(rank.num_q_heads for rank in plan.ranks),
                max(rank.num_kv_heads for rank in plan.ranks),
                format_bytes(max(rank.weight_bytes for rank in plan.ranks)),
                format_bytes(max(rank.page_bytes for rank in plan.ranks)),
                f"{plan.kv_tokens:,}",
                f"{plan.max_context:,}",
                plan.kv_replicas,
                f"{plan.imbalance:.1%}",
            )
        )
    columns = ("tp", "max q", "max KV", "max weights", "max page", "KV tokens", "context", "repl.", "imb.")
    print_table(f"{model}: each max is the largest over ranks, whichever has it", columns, rows)
    typer.echo("KV tokens and context: of the rank with least room; repl.: KV heads held twice or more")
    typer.echo("imb.: weight bytes of the largest rank above the mean")
