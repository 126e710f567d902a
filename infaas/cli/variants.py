"""`infaas variant`: what was made of the models, what was measured, and which ones are worth choosing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from infaas.cli.output import Format, Output, Table, did, emit, memory, next_step, number, percent, show
from infaas.cli.target import TokenFile, Url, connect

if TYPE_CHECKING:
    from infaas.control import VariantDocument
    from infaas.domain.variant import Accuracy

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Variants: ways to run a model, measured.")

Name = Annotated[str, typer.Argument(help="The variant.")]


@app.command("list")
def list_(
    task: Annotated[str | None, typer.Option(help="Only this task's.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """All variants with their measurements; * marks the latency-accuracy-cost frontier."""
    with connect(url, token_file) as client:
        variants = client.variants(task=task, model=model)
    emit({"variants": variants}, output, lambda: show_variants(variants))
    if variants:
        next_step(f"infaas variant describe {variants[0].name}", output)
    else:
        next_step("infaas model register FILE.onnx --task NAME --eval DATA.npz", output)


@app.command()
def describe(name: Name, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """One variant: how it is run, and everything that was measured."""
    with connect(url, token_file) as client:
        found = client.variant(name)
    emit(found, output, lambda: _describe(found))
    next_step(f"infaas infer {name} DATA.npz", output)


@app.command()
def disable(name: Name, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """Never select a variant until it is enabled again."""
    with connect(url, token_file) as client:
        found = client.disable_variant(name)
    emit(found, output, lambda: _describe(found))
    did(f"Variant {name} is not selected any more.", output)
    next_step(f"infaas variant enable {name}", output)


@app.command()
def enable(name: Name, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """Let a disabled variant be selected again."""
    with connect(url, token_file) as client:
        found = client.enable_variant(name)
    emit(found, output, lambda: _describe(found))
    did(f"Variant {name} may be selected again.", output)
    next_step("infaas variant list", output)


def show_variants(variants: Sequence[VariantDocument]) -> None:
    """Fastest first; dominated ones are dim and name what beats them."""
    table = Table(
        "", "VARIANT", "STATE", ">P50 MS", ">P95 MS", ">ACCURACY", ">USD/1K", ">ITEMS/S", ">LOAD MS", ">MEMORY",
        ">REPLICAS", "DOMINATED BY",
    )  # fmt: skip
    for found in sorted(variants, key=lambda v: (v.task, v.p50_ms is None, v.p50_ms or 0.0, v.name)):
        table.add(
            "*" if found.is_on_frontier else "",
            found.name if found.is_current else f"{found.name} (not current)",
            found.state,
            number(found.p50_ms),
            number(found.p95_ms),
            accuracy(found.accuracy),
            number(found.cost_usd_per_1k),
            number(found.throughput_per_s),
            number(found.cold_load_ms),
            memory(found.resident_memory_bytes),
            found.replicas,
            found.dominated_by or "",
            style=None if found.is_on_frontier else "dim",
        )
    show(table)


def accuracy(score: Accuracy | None) -> str:
    """The value with its interval, or marked as declared."""
    if score is None:
        return "-"
    if score.source.value == "declared":
        return f"{percent(score.value)} declared"
    half = (score.high - score.low) / 2
    return f"{percent(score.value)} ±{100 * half:.1f}"


def _describe(found: VariantDocument) -> None:
    table = Table("FIELD", "VALUE")
    table.add("variant", found.name)
    table.add("task", found.task)
    table.add("model", f"{found.model} version {found.version}{'' if found.is_current else ' (not current)'}")
    table.add("state", f"{found.state}{f': {found.reason}' if found.reason else ''}")
    table.add("recipe", found.recipe)
    table.add("runs on", f"{found.runtime}, {found.hardware}, {found.precision}, {found.threads} thread(s)")
    table.add("largest batch", found.max_batch_size)
    table.add("replicas", found.replicas)
    table.add("accuracy", accuracy(found.accuracy))
    if found.accuracy is not None:
        score = found.accuracy
        table.add(
            "", f"{score.metric} on {score.rows} rows, 95 % between {percent(score.low)} and {percent(score.high)}"
        )
    table.add("cost", f"{number(found.cost_usd_per_1k)} USD per 1,000 queries")
    table.add("throughput", f"{number(found.throughput_per_s)} items/s")
    table.add("load", f"{number(found.cold_load_ms)} ms cold, {number(found.warm_load_ms)} ms warm")
    table.add("memory", f"{memory(found.resident_memory_bytes)} resident, {memory(found.peak_memory_bytes)} peak")
    table.add("latency fit error", percent(found.fit_error))
    table.add("frontier", "yes" if found.is_on_frontier else f"dominated by {found.dominated_by or '-'}")
    table.add("raw samples", found.samples)
    show(table)
    points = Table(">BATCH", ">MEAN MS", ">P50 MS", ">P95 MS", ">P99 MS", ">SAMPLES")
    for point in found.latency:
        times = (number(1000 * seconds) for seconds in (point.mean_s, point.p50_s, point.p95_s, point.p99_s))
        points.add(point.batch, *times, point.samples)
    show(points)
