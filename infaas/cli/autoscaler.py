"""`infaas autoscaler`: how busy variants are where they run, and what was done about it."""

from __future__ import annotations

from typing import Annotated

import typer

from infaas.cli.output import Format, Output, Table, emit, next_step, number, show
from infaas.cli.target import TokenFile, Url, connect

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Scaling: how busy, what was done, and why.")

Worker = Annotated[str | None, typer.Option("--worker", help="Of this worker alone.")]
Variant = Annotated[str | None, typer.Option("--variant", help="Of this variant alone.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")]


@app.command()
def status(url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """How busy each variant is on each worker."""
    with connect(url, token_file) as client:
        found = client.autoscaler()
    table = Table("WORKER", "AUTOSCALER", "VARIANT", ">REPLICAS", ">LOADING", ">RUNNING")
    for worker in found.workers:
        state = "on" if worker.is_on else "off"
        if not worker.variants:
            table.add(worker.worker, state, "-", "-", "-", "-")
        for one in worker.variants:
            table.add(worker.worker, state, one.variant, one.replicas, one.loading, number(one.busy, 2))
    emit(found, output, lambda: show(table))
    next_step("infaas autoscaler history" if found.workers else "infaas worker list", output)


@app.command()
def history(
    worker: Worker = None,
    variant: Variant = None,
    limit: Limit = 50,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """The newest scaling steps, and what was called for and held back."""
    with connect(url, token_file) as client:
        steps = client.scaling_steps(limit, worker=worker, variant=variant)
    table = Table("AT", "WORKER", "ACTION", "CAUSE", "VARIANT", ">REPLICAS", "INSTANCE", "WHY")
    for step in steps:
        table.add(
            step.at, step.worker, step.action, step.cause, step.variant, step.replicas, step.instance, step.reason
        )
    emit({"steps": steps}, output, lambda: show(table))
    next_step("infaas autoscaler status", output)
