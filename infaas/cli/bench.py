"""`infaas bench`: load with requirements, and figures that say how far they can be trusted."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infaas.bench.protocol import Protocol
from infaas.cli.output import Format, Output, Table, did, emit, next_step, number, percent, show
from infaas.cli.target import TokenFile, Url, connect, endpoints_of, local_state_dir, read_token

if TYPE_CHECKING:
    from infaas.bench.queries import Rows
    from infaas.bench.report import BenchReport, SetReport
    from infaas.bench.run import Plan
    from infaas.bench.statistics import Percentile
    from infaas.client import Client
    from infaas.domain.variant import Accuracy

DEFAULT_SECONDS = 10.0
FAILURE = 1
INTERRUPTED = 130
"""128 and SIGINT's number, as shells have it."""


def add_to(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    handle: Annotated[str, typer.Argument(help="A task, a model or a variant.")],
    file: Annotated[Path | None, typer.Argument(help="Rows: .npz (with labels, answers are scored) or .npy.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Make inputs up instead, by --seed.")] = False,
    rate: Annotated[float | None, typer.Option(help="Queries per second on a schedule (open loop).")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Callers, each one query after the other.")] = None,
    trace: Annotated[Path | None, typer.Option(help="CSV: offsets in seconds, or `minute` and counts.")] = None,
    speed: Annotated[float, typer.Option(help="Play the trace so many times as fast.")] = 1.0,
    burstiness: Annotated[float, typer.Option(help="Squared variation of gaps; 1: Poisson.")] = 1.0,
    duration: Annotated[float | None, typer.Option(help="Seconds; default: 10, or the whole trace.")] = None,
    count: Annotated[int | None, typer.Option("-n", min=1, help="How many queries, at most.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="latency=MS,accuracy=A,max-cost=C,objective=O,priority=P,tenant=T,name=N:weight=W; repeat."
        ),
    ] = None,
    protocol: Annotated[Protocol, typer.Option(help="How to ask.")] = Protocol.REST_BINARY,
    batch: Annotated[int, typer.Option(min=1, help="Rows per query.")] = 1,
    seed: Annotated[int, typer.Option(help="Of schedule, mix and random inputs.")] = 1,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds of load before, not counted.")] = 0.0,
    connections: Annotated[int, typer.Option(min=1, help="Over REST, at most.")] = 1_024,
    timeout: Annotated[float, typer.Option(help="Seconds until a caller gives up.")] = 60.0,
    out: Annotated[Path | None, typer.Option(help="Write the whole report there too, as JSON.")] = None,
    grpc_url: Annotated[str | None, typer.Option(help="host:port for --protocol grpc; default: the local one.")] = None,
    url: Url = None,
    token_file: TokenFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Send load and measure it: on a schedule (--rate, --trace) or with callers that wait (--concurrency).

    Ctrl-C ends the run and prints what there is; during the warm-up it ends everything.
    """
    from infaas.bench.run import bench as run
    from infaas.rpc.codec import to_plain

    parameters = {key: _plain(value) for key, value in locals().items() if key in _PARAMETERS}
    _check(file, random, rate, concurrency, trace, {"speed": speed, "burstiness": burstiness, "timeout": timeout})
    with connect(url, token_file) as client:
        plan = _plan(client, parameters, file, token_file, grpc_url, url)
    report = _interruptible(lambda show_stop: run(plan, show_stop))
    if out is not None:
        out.write_text(json.dumps(to_plain(report), indent=2, ensure_ascii=False) + "\n")
    emit(report, output, lambda: _show(report))
    overall = report.total or report.sets[0]
    did(_summary(report, overall), output)
    next_step("infaas variant list", output)
    if not overall.answered:
        raise typer.Exit(FAILURE)


_PARAMETERS = (
    "handle", "file", "random", "rate", "concurrency", "trace", "speed", "burstiness", "duration", "count", "sets",
    "protocol", "batch", "seed", "warm_up", "connections", "timeout",
)  # fmt: skip


def _plain(value: object) -> Any:
    if isinstance(value, Path | Protocol):
        return str(value)
    return value


def _check(
    file: Path | None,
    is_random: bool,
    rate: float | None,
    concurrency: int | None,
    trace: Path | None,
    positive: Mapping[str, float],
) -> None:
    if (file is None) != is_random:
        raise typer.BadParameter("give rows as a file, or --random")
    if sum(one is not None for one in (rate, concurrency, trace)) != 1:
        raise typer.BadParameter("one of --rate, --concurrency and --trace says how queries leave")
    stated = dict(positive) if rate is None else {**positive, "rate": rate}
    for name, value in stated.items():
        if not 0 < value < float("inf"):
            raise typer.BadParameter(f"--{name} must be a number above 0, not {value:g}")


def _plan(
    client: Client,
    said: Mapping[str, Any],
    file: Path | None,
    token_file: Path | None,
    grpc_url: str | None,
    url: str | None,
) -> Plan:
    from infaas.bench.mixes import read_sets
    from infaas.bench.run import Plan

    sets = read_sets(said["sets"] or ())
    metadata = client.metadata(said["handle"])
    rows = _rows(metadata, file, said["batch"], said["seed"])
    token, target = _credentials(Protocol(said["protocol"]), token_file, grpc_url, url)
    variants = {one.name: one for one in client.variants()}
    metric = _metric(client, metadata, said["handle"], variants, rows)
    return Plan(
        handle=said["handle"],
        url=client.url,
        rows=rows,
        sets=sets,
        protocol=Protocol(said["protocol"]),
        grpc_target=target,
        token=token,
        schedule=_schedule(said),
        callers=said["concurrency"] or 1,
        seconds=said["duration"] if said["duration"] or said["count"] else DEFAULT_SECONDS,
        count=said["count"],
        warm_up_s=said["warm_up"],
        connections=said["connections"],
        patience_s=said["timeout"],
        seed=said["seed"],
        prices={name: one.cost_usd_per_1k for name, one in variants.items() if one.cost_usd_per_1k is not None},
        metric=metric,
        outputs=_specs(metadata["outputs"]),
        parameters=said,
        server_version=str(client.server().get("version", "unknown")),
    )


def _rows(metadata: Mapping[str, Any], file: Path | None, batch: int, seed: int) -> Rows:
    import numpy as np

    from infaas.bench.queries import Rows, random_inputs
    from infaas.cli.inputs import read

    if file is None:
        return Rows(random_inputs(_specs(metadata["inputs"]), batch, seed), batch, {})
    inputs = read(file, (), metadata["inputs"]).arrays
    expected = {}
    if file.suffix == ".npz":
        wanted = {"label", *(one["name"] for one in metadata["outputs"])} - set(inputs)
        with np.load(file, allow_pickle=False) as arrays:
            expected = {name: arrays[name] for name in wanted if name in arrays}
    return Rows(inputs, batch, expected)


def _metric(client: Client, metadata: Mapping[str, Any], handle: str, variants: Mapping[str, Any], rows: Rows) -> Any:
    """The task's; None where the rows have no labels, or none that it can use."""
    from infaas.errors import InvalidError
    from infaas.metrics import load_metric

    if not rows.expected:
        return None
    tasks = {str(one.task.name): one.task for one in client.tasks()}
    owner = next((one.task for one in variants.values() if handle in (one.name, one.model)), handle)
    if owner not in tasks:
        return None
    metric = load_metric(tasks[owner].metric)
    problems = metric.check(rows.expected, _specs(metadata["outputs"]))
    if problems:
        raise InvalidError("the file's labels cannot be scored: " + "; ".join(problems), problems=list(problems))
    return metric


def _specs(tensors: Sequence[Mapping[str, Any]]) -> list[Any]:
    from infaas.domain.tensor import Datatype, TensorSpec

    return [TensorSpec(one["name"], Datatype(one["datatype"]), tuple(one["shape"])) for one in tensors]


def _schedule(said: Mapping[str, Any]) -> tuple[float, ...] | None:
    from infaas.bench.schedule import arrivals, played, read_trace
    from infaas.errors import InvalidError

    if said["concurrency"] is not None:
        return None
    seconds, count = said["duration"], said["count"]
    if said["trace"] is not None:
        try:
            text = Path(said["trace"]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidError(f"--trace {said['trace']!r} cannot be read: {error}") from error
        whole: Any = read_trace(text, said["seed"], said["burstiness"])
    else:
        within = seconds if seconds is not None else (float("inf") if count else DEFAULT_SECONDS)
        whole = arrivals(said["rate"], within, said["seed"], said["burstiness"])
    schedule = played(whole, speed=said["speed"] if said["trace"] else 1.0, seconds=seconds, count=count)
    if not schedule:
        raise InvalidError("no query is due in that time")
    return schedule


def _credentials(
    protocol: Protocol, token_file: Path | None, grpc_url: str | None, url: str | None
) -> tuple[str | None, str | None]:
    """Token and gRPC target. Raises InvalidError where the target cannot be known."""
    from infaas.errors import InvalidError
    from infaas.settings import load_settings

    token = read_token(token_file)
    if url is None:
        token = token or load_settings().token()
        endpoints = endpoints_of(local_state_dir(None))
        grpc_url = grpc_url or (endpoints.grpc if endpoints else "127.0.0.1:8001")
    if protocol is Protocol.GRPC and grpc_url is None:
        raise InvalidError("--protocol grpc with --url needs --grpc-url host:port too")
    return token, grpc_url


def _interruptible(run: Callable[[Callable[[Callable[[], None]], None]], Any]) -> BenchReport:
    """The first Ctrl-C ends the sending, a second one everything; so does the first where nothing is measured yet."""
    import uvloop

    from infaas.bench.run import Interrupted

    async def main() -> BenchReport:
        loop = asyncio.get_running_loop()

        def show_stop(stop: Callable[[], None]) -> None:
            def interrupt() -> None:
                loop.remove_signal_handler(signal.SIGINT)
                stop()

            loop.add_signal_handler(signal.SIGINT, interrupt)

        report: BenchReport = await run(show_stop)
        return report

    try:
        return uvloop.run(main())
    except (Interrupted, KeyboardInterrupt) as error:
        typer.echo("Interrupted: there is no report.", err=True)
        raise typer.Exit(INTERRUPTED) from error


def _show(report: BenchReport) -> None:
    table = Table(
        "SET",
        ">SENT",
        ">ANSWERED",
        ">ON TIME",
        ">P50 MS",
        ">P90",
        ">P95",
        ">P99",
        ">MAX",
        ">PER S",
        ">ACCURACY",
        ">USD/1K",
    )
    for one in (*report.sets, *([report.total] if report.total else [])):
        on_time = "-" if one.on_time is None else percent(one.on_time / one.sent if one.sent else None)
        table.add(
            one.name,
            one.sent,
            one.answered,
            on_time,
            *(_quoted(found) for found in one.latency_ms),
            number(one.max_ms),
            number(one.throughput),
            _scored(one.accuracy),
            number(one.cost_usd_per_1k),
        )
    show(table)
    served = Table("SET", "SERVED BY", "ENDED AS")
    for one in report.sets:
        served.add(one.name, _counted(one.variants, one.answered), _counted(one.codes, one.sent))
    show(served)
    own = report.generator
    typer.echo(
        f"Generator: {percent(own.cpu_share, 0)} of a core, event loop late by {1e3 * own.lag_p99_s:.1f} ms (p99), "
        f"{percent(own.late_share)} of queries sent late."
    )
    for finding in report.findings:
        typer.echo(f"Caution: {finding.what}: {finding.distrust}.")
    for note in report.notes:
        typer.echo(f"Note: {note}.")


def _quoted(found: Percentile) -> str:
    """With its 95 % interval; a percentile that too few samples stand behind is none."""
    if found.value is None:
        return "too few"
    return f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"


def _scored(accuracy: Accuracy | None) -> str:
    """With the 95 % interval of so many distinct rows."""
    if accuracy is None:
        return "-"
    return f"{percent(accuracy.value)} [{percent(accuracy.low)}, {percent(accuracy.high)}]"


def _counted(words: Mapping[str, int], total: int) -> str:
    return ", ".join(f"{word} {percent(count / total)}" for word, count in words.items()) or "-"


def _summary(report: BenchReport, overall: SetReport) -> str:
    offered = "" if report.offered is None else f", {report.offered:,.1f}/s offered"
    trust = "" if not report.findings else "; read the cautions before the figures"
    return (
        f"Sent {overall.sent:,} queries in {report.seconds:.1f} s{offered}; {overall.answered:,} answered "
        f"({overall.throughput:,.1f}/s until the last answer, after {report.answering_s:.1f} s){trust}."
    )
