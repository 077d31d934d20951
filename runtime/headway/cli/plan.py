"""`headway plan`: what each rank of a model would hold, from its config.json alone."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from headway.cli.table import print_table
from headway.cli.units import format_bytes, parse_bytes
from headway.core.errors import ConfigError
from headway.model.folder import read_spec, resolve
from headway.model.spec import DecoderSpec
from headway.model.weights import shard_plan

PAGE_SIZE = 16
MEMORY_FRACTION = 0.9  # of the device, for weights and pages; the rest is activations and the driver's
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class RankFigures:
    """What one rank holds. kv_tokens: cached tokens that fit beside its weights, in whole pages."""

    rank: int
    num_q_heads: int
    num_kv_heads: int
    num_replicas: int
    weight_bytes: int
    page_bytes: int
    kv_tokens: int


@dataclass(frozen=True, kw_only=True)
class PlanFigures:
    """What a plan comes to. kv_tokens: of the rank with least room. max_context: at most the model's."""

    tp: int
    ranks: tuple[RankFigures, ...]
    kv_tokens: int
    max_context: int
    kv_replicas: int
    replicated_bytes_per_token: int
    imbalance: float


def plan(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, or demo.")],
    tp: Annotated[int, typer.Option(help="Ranks to share the model over.")] = 1,
    gpu_memory: Annotated[str, typer.Option(help="Memory of each GPU.")] = "80GiB",
    compare: Annotated[bool, typer.Option("--compare", help="Show 1 to N ranks side by side.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")] = False,
) -> None:
    """Show how a model's heads, weights and KV pages fall on its ranks.

    An error where they do not fit; of the fewer ranks of a comparison, those that do not have no context.
    """
    memory = parse_bytes("gpu-memory", gpu_memory)
    spec = read_spec(resolve(model, weights=False))
    last = figures(spec, tp, memory)
    _check_room(last, memory)
    plans = [*(figures(spec, n, memory) for n in range(1, tp)), last] if compare else [last]
    if as_json:
        value = [asdict(one) for one in plans] if compare else asdict(last)
        typer.echo(json.dumps({"model": model, "plans" if compare else "plan": value}, indent=2))
    elif compare:
        _print_comparison(model, plans)
    else:
        _print_ranks(model, spec, last)


def figures(spec: DecoderSpec, tp: int, memory_bytes: int) -> PlanFigures:
    """`memory_bytes`: of each rank's device. Raises ConfigError where `tp` ranks cannot share the model."""
    shards = shard_plan(spec, tp)
    dtype_bytes = DTYPE_BYTES[spec.dtype]
    ranks = []
    for rank, heads in enumerate(shards.heads.ranks):
        weight_bytes = shards.rank(rank).target_bytes(dtype_bytes)
        head_bytes = 2 * PAGE_SIZE * spec.head_dim * dtype_bytes  # K and V
        page_bytes = heads.num_kv_heads * spec.num_layers * head_bytes
        num_pages = max(0, int(memory_bytes * MEMORY_FRACTION) - weight_bytes) // page_bytes
        ranks.append(
            RankFigures(
                rank=rank,
                num_q_heads=heads.num_q_heads,
                num_kv_heads=heads.num_kv_heads,
                num_replicas=heads.num_replicas,
                weight_bytes=weight_bytes,
                page_bytes=page_bytes,
                kv_tokens=num_pages * PAGE_SIZE,
            )
        )
    kv_tokens = min(rank.kv_tokens for rank in ranks)
    replicated = shards.heads.replicated_bytes(
        head_dim=spec.head_dim, dtype_bytes=dtype_bytes, num_tokens=1, num_layers=spec.num_layers
    )
    return PlanFigures(
        tp=tp,
        ranks=tuple(ranks),
        kv_tokens=kv_tokens,
        max_context=min(kv_tokens, spec.max_model_len),
        kv_replicas=shards.heads.kv_replicas,
        replicated_bytes_per_token=replicated,
        imbalance=shards.heads.imbalance,
    )


def _check_room(plan: PlanFigures, memory_bytes: int) -> None:
    """Raise ConfigError unless every rank has room for its weights and a page."""
    fullest = max(plan.ranks, key=lambda rank: rank.weight_bytes + rank.page_bytes)
    if plan.kv_tokens:
        return
    need = f"{format_bytes(fullest.weight_bytes)} of weights and {format_bytes(fullest.page_bytes)} a page"
    limit = f"{MEMORY_FRACTION:.0%} of gpu-memory is {format_bytes(int(memory_bytes * MEMORY_FRACTION))}"
    raise ConfigError(f"the weights do not fit: rank {fullest.rank} needs {need}, {limit}")


def _print_ranks(model: str, spec: DecoderSpec, plan: PlanFigures) -> None:
    heads = f"{spec.num_q_heads} query and {spec.num_kv_heads} KV heads"
    print_table(
        f"{model} on {plan.tp} ranks: {heads}, {spec.num_layers} layers, {spec.dtype}",
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
    replicated = format_bytes(plan.replicated_bytes_per_token)
    typer.echo(f"a page is K and V of {PAGE_SIZE} tokens; largest context {plan.max_context:,} tokens")
    typer.echo(f"imbalance {plan.imbalance:.1%}; {plan.kv_replicas} KV heads replicated, ", nl=False)
    typer.echo(f"{replicated} a cached token")


def _print_comparison(model: str, plans: list[PlanFigures]) -> None:
    """Figures of the fullest rank of each plan."""
    rows: list[tuple[object, ...]] = []
    for plan in plans:
        rows.append(
            (
                plan.tp,
                max(rank.num_q_heads for rank in plan.ranks),
                max(rank.num_kv_heads for rank in plan.ranks),
                plan.kv_replicas,
                format_bytes(max(rank.weight_bytes for rank in plan.ranks)),
                format_bytes(max(rank.page_bytes for rank in plan.ranks)),
                f"{plan.kv_tokens:,}",
                f"{plan.max_context:,}",
                f"{plan.imbalance:.1%}",
            )
        )
    columns = ("tp", "q", "KV", "replicas", "weights", "page", "KV tokens", "context", "imbalance")
    print_table(f"{model}: the fullest of tp ranks; a page is K and V of {PAGE_SIZE} tokens", columns, rows)
