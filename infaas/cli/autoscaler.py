"""`infaas autoscaler`: how busy variants are where they run, and what was done about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infaas.cli.output import Format, Output, Table, emit, next_step, number, show
from infaas.cli.target import TokenFile, Url, connect
from infaas.errors import InfaasError

if TYPE_CHECKING:
    from infaas.client import Client
    from infaas.control import FleetDocument, FleetStepDocument

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Scaling: how busy, what was done, and why.")

Worker = Annotated[str | None, typer.Option("--worker", help="Of this worker alone.")]
Variant = Annotated[str | None, typer.Option("--variant", help="Of this variant alone.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")]


@app.command()
def status(url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """How busy each variant is on each worker, and how many workers there are and are wanted."""
    with connect(url, token_file) as client:
        found = client.autoscaler()
        fleet, trouble = _fleet(client)
    table = Table("WORKER", "AUTOSCALER", "VARIANT", ">REPLICAS", ">LOADING", ">RUNNING")
    for worker in found.workers:
        state = "on" if worker.is_on else "off"
        if not worker.variants:
            table.add(worker.worker, state, "-", "-", "-", "-")
        for one in worker.variants:
            table.add(worker.worker, state, one.variant, one.replicas, one.loading, number(one.busy, 2))
    pools = Table(
        "POOL", ">CORES", ">MIN", ">MAX", ">READY", ">STARTING", ">DRAINING", ">ORDERED", ">LOST", ">OWN", ">USD/H EACH"
    )
    for pool in fleet.pools if fleet is not None else ():
        pools.add(
            pool.name,
            pool.cores,
            pool.min_workers,
            pool.max_workers,
            pool.ready,
            pool.starting,
            pool.draining,
            pool.ordered,
            pool.lost,
            pool.own,
            number(pool.price_usd_per_hour, 4),
        )

    def tell() -> None:
        show(table)
        if fleet is None:
            typer.echo(f"The fleet: {trouble}")
        elif fleet.pools:
            typer.echo()
            show(pools)
            typer.echo(_sum(fleet))

    emit({"workers": found.workers, "fleet": fleet, "fleet_trouble": trouble}, output, tell)
    next_step("infaas autoscaler history" if found.workers else "infaas worker list", output)


def _fleet(client: Client) -> tuple[FleetDocument | None, str]:
    """Or why it cannot be shown: the rest is worth showing all the same."""
    try:
        return client.fleet(), ""
    except InfaasError as error:
        return None, error.text


def _moves(client: Client, limit: int) -> tuple[list[FleetStepDocument], str]:
    """As `_fleet`: they are in the store, which may be away."""
    try:
        return client.fleet_steps(limit), ""
    except InfaasError as error:
        return [], error.text


def _sum(fleet: FleetDocument) -> str:
    work = "not known yet" if fleet.demand_cores is None else f"{fleet.demand_cores:.2f} cores"
    wanted = "not known yet" if fleet.wanted_cores is None else f"{fleet.wanted_cores:.1f} cores"
    spent = f"{fleet.spent_usd_per_hour:.4g} USD/h"
    if fleet.max_usd_per_hour is not None:
        spent += f" of at most {fleet.max_usd_per_hour:.4g}"
    mode = ", dry run" if fleet.is_dry_run else ""
    return (
        f"work {work}, wanted {wanted}, there {fleet.there_cores}; {spent} "
        f"({fleet.provider}{mode}, by {fleet.controller} at {fleet.at})"
    )


@app.command()
def history(
    worker: Worker = None,
    variant: Variant = None,
    limit: Limit = 50,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """The newest scaling steps of workers, then of the fleet, and what was called for and held back."""
    with connect(url, token_file) as client:
        steps = client.scaling_steps(limit, worker=worker, variant=variant)
        fleet, trouble = _moves(client, limit)
    fleet = [
        move
        for move in fleet
        if (worker is None or move.worker == worker) and (variant is None or move.variant == variant)
    ]
    table = Table("AT", "WORKER", "ACTION", "CAUSE", "VARIANT", ">REPLICAS", "INSTANCE", "WHY")
    for step in steps:
        table.add(
            step.at, step.worker, step.action, step.cause, step.variant, step.replicas, step.instance, step.reason
        )
    moves = Table("AT", "POOL", "ACTION", "CAUSE", "WORKER", "WHY")
    for move in fleet:
        action = f"{move.action} (dry run)" if move.is_dry_run else move.action
        moves.add(move.at, move.pool or "-", action, move.cause, move.worker or "-", move.reason)

    def tell() -> None:
        show(table)
        if trouble:
            typer.echo(f"The fleet: {trouble}")
        elif fleet:
            typer.echo()
            show(moves)

    emit({"steps": steps, "fleet": fleet, "fleet_trouble": trouble}, output, tell)
    next_step("infaas autoscaler status", output)
