"""`infaas worker`: who runs instances, and taking one out of service without losing a query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infaas.cli.output import Format, Output, Table, did, emit, memory, next_step, number, percent, show
from infaas.cli.target import TokenFile, Url, connect

if TYPE_CHECKING:
    from infaas.control import SharedMemoryDocument, WorkerDocument

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Workers: who runs instances.")

Id = Annotated[str, typer.Argument(help="The worker's id.")]


@app.command("list")
def list_(url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """All workers."""
    with connect(url, token_file) as client:
        workers = client.workers()
    table = Table(
        "WORKER", "STATE", "CONNECTED", "POOL", ">CORES", ">MEMORY", ">CPU", ">INSTANCES", ">REPORT AGE", "REASON"
    )
    for worker in workers:
        table.add(
            worker.id,
            worker.state,
            "yes" if worker.is_connected else "no",
            worker.pool,
            worker.cores,
            memory(worker.memory_bytes),
            percent(worker.cpu_ratio, 0),
            len(worker.instances),
            "-" if worker.report_age_s is None else f"{worker.report_age_s:.1f} s",
            worker.trouble or worker.reason or "-",
        )
    emit({"workers": workers}, output, lambda: show(table))
    next_step(f"infaas worker describe {workers[0].id}" if workers else "infaas up", output)


@app.command()
def describe(worker: Id, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """One worker and its instances."""
    with connect(url, token_file) as client:
        found = client.worker(worker)
    emit(found, output, lambda: _describe(found))
    next_step(f"infaas worker drain {worker}", output)


@app.command()
def drain(worker: Id, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """Give a worker no new queries; it finishes what it has."""
    with connect(url, token_file) as client:
        found = client.drain_worker(worker)
    emit(found, output, lambda: _describe(found))
    did(f"Worker {worker} drains.", output)
    next_step(f"infaas worker resume {worker}", output)


@app.command()
def resume(worker: Id, url: Url = None, token_file: TokenFile = None, output: Output = Format.TABLE) -> None:
    """Give a drained worker queries again."""
    with connect(url, token_file) as client:
        found = client.resume_worker(worker)
    emit(found, output, lambda: _describe(found))
    did(f"Worker {worker} serves again.", output)
    next_step("infaas worker list", output)


def _shared(found: SharedMemoryDocument) -> str:
    if not found.is_used:
        return f"not used: {found.reason}"
    rest = f"; {found.without_room} found it full" if found.without_room else ""
    return f"{found.inputs} large inputs, {found.outputs} large outputs{rest}"


def _describe(worker: WorkerDocument) -> None:
    table = Table("FIELD", "VALUE")
    table.add("worker", worker.id)
    table.add("state", f"{worker.state}{f': {worker.reason}' if worker.reason else ''}")
    table.add("connected", "yes" if worker.is_connected else f"no{f': {worker.trouble}' if worker.trouble else ''}")
    table.add("address", worker.address)
    table.add("pool", worker.pool)
    table.add("host", worker.host)
    table.add("cores", worker.cores)
    table.add("memory for instances", memory(worker.memory_bytes))
    table.add("price", f"{number(worker.price_usd_per_hour)} USD/h per core")
    table.add("cpu", percent(worker.cpu_ratio, 0))
    table.add("memory used", percent(worker.memory_ratio, 0))
    table.add("time taken by the host", percent(worker.stall_ratio))
    if (memory_shared := worker.shared_memory) is not None:
        table.add("shared memory", _shared(memory_shared))
    show(table)
    instances = Table("INSTANCE", "VARIANT", "STATE", "IN A", ">RUNNING", ">STAGED", ">ITEMS", ">BUSY", "REASON")
    for one in worker.instances:
        busy = percent(one.busy_ratio, 0)
        counts = (one.running, one.staged, one.items_done)
        instances.add(one.id, one.variant, one.state, one.isolation, *counts, busy, one.reason or "-")
    if worker.instances:
        show(instances)
