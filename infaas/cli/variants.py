"""`infaas variant`: what was made of the models, what was measured, and which ones are worth choosing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from infaas.cli.output import Format, Output, Table, console, did, emit, memory, next_step, number, percent, show
from infaas.cli.target import TokenFile, Url, connect

if TYPE_CHECKING:
    from infaas.client import Client
    from infaas.control import ProfilingDocument, VariantDocument
    from infaas.domain.variant import Accuracy, Profile

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
def profile(
    name: Name,
    budget: Annotated[
        float | None, typer.Option(help="Seconds of measuring. Default: the generator's own budget.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch/--detach", help="Follow until it is measured, or return.")] = True,
    history: Annotated[bool, typer.Option("--history", help="Measure nothing; list all earlier profiles.")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="Repeating a call with the same key is safe.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Measure a variant anew while it serves on; the older profiles stay as history."""
    with connect(url, token_file) as client:
        if history:
            profiles = client.profiles(name)
            emit({"profiles": profiles}, output, lambda: _show_profiles(profiles))
            next_step(f"infaas variant profile {name}", output)
            return
        before = client.variant(name)
        ordered = client.profile_variant(name, budget, idempotency_key=idempotency_key)
        if not watch:
            emit(ordered, output, lambda: None)
            did(f"Variant {name} will be measured for {ordered.budget_s:g} s (profiling {ordered.id}).", output)
            next_step(f"infaas variant profile {name} --history", output)
            return
        _follow_profiling(client, ordered, output)
        after = client.variant(name)
    emit(after, output, lambda: _show_change(before, after))
    did(f"Variant {name} is measured anew.", output)
    next_step(f"infaas variant profile {name} --history", output)


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


@app.command()
def isolate(
    name: Name,
    isolation: Annotated[str, typer.Option(help="process, or thread to undo it.")] = "process",
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Give each instance a process of its own, so that its crashes and hangs harm nothing else."""
    with connect(url, token_file) as client:
        found = client.isolate_variant(name, isolation)
    emit(found, output, lambda: _describe(found))
    did(f"Instances of {name} that are loaded from now on have isolation {found.isolation}.", output)
    next_step("infaas worker list", output)


def _follow_profiling(client: Client, ordered: ProfilingDocument, output: Format) -> None:
    """With a bar, until it succeeded; raises when it did not."""
    from infaas.cli.builds import Bars, follow_profiling
    from infaas.domain.query import Code
    from infaas.errors import InfaasError

    last = ordered
    with Bars(console(is_error=output is not Format.TABLE)) as bars:
        for last in follow_profiling(client, ordered.variant, ordered.id):
            if last.progress is not None:
                bars.show(last.variant, last.progress)
    if last.state != "Succeeded":
        text = f"profiling {last.id} of {last.variant} {last.state.lower()}: {last.reason}; the older profile counts"
        raise InfaasError(text, code=Code.MODEL_FAILED)


def _show_profiles(profiles: Sequence[Profile]) -> None:
    """Newest first; the first one counts."""
    table = Table(
        "", "MEASURED AT", "HOST", ">BUDGET S", ">P50 MS", ">P95 MS", ">USD/1K", ">ITEMS/S", ">LOAD MS", ">MEMORY",
        ">REPEATED", "SAMPLES",
    )  # fmt: skip
    for place, one in enumerate(profiles):
        table.add(
            "*" if place == 0 else "",
            one.measured_at,
            one.host,
            number(one.budget_s),
            number(1000 * one.latency_s(1, "p50_s")),
            number(1000 * one.latency_s(1)),
            number(one.cost_usd_per_1k),
            number(one.throughput_per_s),
            number(1000 * one.cold_load_s),
            memory(one.resident_memory_bytes),
            one.stalled_rounds,
            one.samples[:12] if one.samples else None,
            style=None if place == 0 else "dim",
        )
    show(table)


def _show_change(before: VariantDocument, after: VariantDocument) -> None:
    """What the new measurement changed."""
    table = Table("FIGURE", ">BEFORE", ">NOW", ">CHANGE")
    figures: tuple[tuple[str, float | None, float | None], ...] = (
        ("p50, ms", before.p50_ms, after.p50_ms),
        ("p95, ms", before.p95_ms, after.p95_ms),
        ("items/s", before.throughput_per_s, after.throughput_per_s),
        ("USD per 1,000", before.cost_usd_per_1k, after.cost_usd_per_1k),
        ("cold load, ms", before.cold_load_ms, after.cold_load_ms),
        ("memory, MiB", _mib(before.resident_memory_bytes), _mib(after.resident_memory_bytes)),
    )
    for name, old, new in figures:
        change = f"{100 * (new / old - 1):+.1f}%" if old and new is not None else "-"
        table.add(name, number(old), number(new), change)
    show(table)


def _mib(value: int | None) -> float | None:
    return None if value is None else value / 2**20


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
    table.add("isolation", f"{found.isolation}{f': {found.isolation_reason}' if found.isolation_reason else ''}")
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
