"""The five questions, each answered by one function: a table for people and the same as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from decision import measure as decide

from dataplane import tables
from dataplane.cells import BINARY, GRPC, JSON, OpenCell, Run, Started, closed, opened, started, tell, understands
from dataplane.figures import Round, Throughput, ratio, throughput, why_bound
from dataplane.graphs import RESNET, SMALL_CNN, SMALL_MLP, WIDE_MLP, Model
from dataplane.offline import Limit, limit_of
from dataplane.peers import NULL
from dataplane.servers import FASTAPI, LeftOut, Server

DEADLINE_S = 0.1
MULTIPLES = (0.8, 1.0, 1.5, 2.0, 5.0)
CALM = 0.5
"""Of capacity: what is offered after an overload."""
LATE_S = 0.01
"""A load that leaves later than this, a tenth of the deadline, is not the one that is said."""
DECISION_INSTANCES = (10, 100, 1_000, 5_000, 10_000)


@dataclass(frozen=True, slots=True)
class Answer:
    """To one question."""

    title: str
    table: str
    left_out: Sequence[LeftOut]
    data: Any


def of_throughput(run: Run) -> Answer:
    """Closed loop over 32 connections, all systems in turn, round after round."""
    with started(run, SMALL_MLP, ("null", *run.peers)) as up:
        cells: dict[tuple[str, str], list[Round]] = {}
        for number in range(run.effort.rounds):
            tell(f"round {number + 1} of {run.effort.rounds}")
            for kind in (BINARY, JSON, GRPC):
                for server in up.servers:
                    if understands(server, kind) and (server.name != NULL or kind == BINARY):
                        cell = closed(up, server, kind, run.effort, is_checked=server.name != NULL)
                        cells.setdefault((server.name, kind), []).append(cell)
        found = {key: throughput(rounds) for key, rounds in cells.items()}
        null = found.get((NULL, BINARY))
        null_rate = None if null is None else null.rate
        rows, data = [], []
        for (name, kind), one in found.items():
            rates = [cell.rate for cell in cells[name, kind]]
            # gRPC has no FastAPI of its own: it is held against the binary one.
            base = [cell.rate for cell in cells.get((FASTAPI, BINARY if kind == GRPC else kind), ())]
            over = None if name == NULL else ratio(rates, base)
            bound = "" if name == NULL else why_bound(one.rate, one.generator_share, null_rate)
            rows.append(_throughput_row(name, kind, one, over, bound))
            data.append({"system": name, "kind": kind, **asdict(one), "ratio": over, "bound": bound, "rates": rates})
        headings = (
            "system", "kind", "answers/s", "lowest–highest", "× FastAPI", "CPU µs/query", "p50 ms", "p95 ms", "failed",
            "generator", "CPU µs of", "remark",
        )  # fmt: skip
        title = (
            f"Throughput: {SMALL_MLP.what}, 32 connections, closed loop, SLO headers; medians of {run.effort.rounds}"
        )
        return Answer(title, tables.table(headings, rows), up.left_out, data)


def _throughput_row(name: str, kind: str, one: Throughput, over: float | None, bound: str) -> list[str]:
    return [
        name, kind, tables.count(one.rate), f"{tables.count(one.lowest)}–{tables.count(one.highest)}",
        tables.times(over), tables.microseconds(one.cpu_per_query_s), tables.milliseconds(one.p50_s),
        tables.milliseconds(one.p95_s), str(one.failed), tables.share(one.generator_share),
        tables.parts(one.programs_cpu_per_query_s, 1e-6), bound,
    ]  # fmt: skip


def of_limits(run: Run, models: Sequence[Model] = (WIDE_MLP, SMALL_CNN, RESNET)) -> Answer:
    """INFaaS over binary REST against one process that does nothing but run batches, in turn."""
    rows, data = [], []
    for model in models:
        with started(run, model, ()) as up:
            server = up.servers[0]
            limits: list[Limit] = []
            rounds: list[Round] = []
            for _ in range(run.effort.rounds):
                limits.append(limit_of(up.prepared.file, run.kit.pins.server, run.effort.offline_s))
                rounds.append(closed(up, server, BINARY, run.effort))
            one = throughput(rounds)
            best = [limit.best for limit in limits]
            share = ratio([cell.rate for cell in rounds], best)
            top = max(limits, key=lambda limit: limit.best)
            rows.append([
                model.name, model.what, tables.milliseconds(top.alone_s), tables.count(top.rows_per_s[1]),
                f"{tables.count(top.best)} at {top.best_batch}", tables.count(one.rate),
                tables.share(float("nan") if share is None else share), tables.microseconds(one.cpu_per_query_s),
                tables.parts(one.programs_cpu_per_query_s, 1e-6), why_bound(one.rate, one.generator_share, None),
            ])  # fmt: skip
            data.append(
                {"model": model.name, "share": share, "infaas": asdict(one), "limits": list(map(asdict, limits))}
            )
    headings = (
        "model", "what", "alone ms", "batch 1 rows/s", "best rows/s", "infaas/s", "of the best", "CPU µs/query",
        "CPU µs of", "remark",
    )  # fmt: skip
    title = f"Limits: binary, 32 connections, against the best offline batches; medians of {run.effort.rounds}"
    return Answer(title, tables.table(headings, rows), (), data)


def of_latency(run: Run, models: Sequence[Model] = (SMALL_MLP,)) -> Answer:
    """One connection, one query at a time."""
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    missing: list[LeftOut] = []
    for model in models:
        with started(run, model, run.peers) as up:
            missing += up.left_out
            limits: list[Limit] = []
            cells: dict[tuple[str, str], list[Round]] = {}
            for _ in range(run.effort.rounds):
                limits.append(limit_of(up.prepared.file, run.kit.pins.server, run.effort.offline_s))
                for kind in (BINARY, JSON, GRPC):
                    for server in up.servers:
                        if understands(server, kind):
                            cell = closed(up, server, kind, run.effort, connections=1)
                            cells.setdefault((server.name, kind), []).append(cell)
            alone = median(limit.alone_s for limit in limits), median(limit.alone_p95_s for limit in limits)
            for (name, kind), rounds in cells.items():
                one = throughput(rounds)
                added = one.p50_s - alone[0], one.p95_s - alone[1]
                rows.append([
                    model.name, name, kind, tables.milliseconds(one.p50_s), tables.milliseconds(one.p95_s),
                    tables.milliseconds(added[0]), tables.milliseconds(added[1]),
                    tables.microseconds(one.cpu_per_query_s), tables.parts(one.programs_cpu_per_query_s, 1e-6),
                ])  # fmt: skip
                data.append({"model": model.name, "system": name, "kind": kind, **asdict(one),
                             "added_p50_s": added[0], "added_p95_s": added[1], "alone_s": alone[0]})  # fmt: skip
    headings = ("model", "system", "kind", "p50 ms", "p95 ms", "added p50", "added p95", "CPU µs/query", "CPU µs of")
    title = f"Latency: one connection, added over ONNX Runtime in process; medians of {run.effort.rounds}"
    return Answer(title, tables.table(headings, rows), missing, data)


def of_overload(
    run: Run, models: Sequence[Model] = (SMALL_CNN, SMALL_MLP), multiples: Sequence[float] = MULTIPLES
) -> Answer:
    """Open loop with a deadline, at multiples of what each system itself answers in a closed loop."""
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    missing: list[LeftOut] = []
    for model in models:
        with started(run, model, run.peers) as up:
            missing += up.left_out
            for server in up.servers:
                if not server.has_rest:
                    continue
                capacity = throughput([closed(up, server, BINARY, run.effort) for _ in range(run.effort.rounds)]).rate
                for number, multiple in enumerate(multiples):
                    cell = _offered(run, up, server, capacity, multiple, seed=number)
                    rows.append(_overload_row(model, server, capacity, multiple, cell))
                    data.append({"model": model.name, "system": server.name, "capacity": capacity,
                                 "multiple": multiple, **asdict(cell)})  # fmt: skip
    headings = (
        "model", "system", "capacity/s", "offered", "on time/s", "of capacity", "admitted p99 ms", "late", "refused",
        "refusal p50 ms", "p95 ms", "unsent", "unanswered", "normal after s", "remark",
    )  # fmt: skip
    title = f"Overload: binary, open loop (Poisson), {DEADLINE_S * 1e3:.0f} ms deadline, then {CALM:g}× capacity"
    return Answer(title, tables.table(headings, rows), missing, data)


def _offered(run: Run, up: Started, server: Server, capacity: float, multiple: float, seed: int) -> OpenCell:
    return opened(up, server, capacity * multiple, capacity * CALM, run.effort, DEADLINE_S, seed)


def _overload_row(model: Model, server: Server, capacity: float, multiple: float, cell: OpenCell) -> list[str]:
    found = cell.overload
    remark = why_bound(0.0, cell.generator_share, None)
    if not remark and cell.late_p99_s > LATE_S:
        remark = f"the load left late (p99 {cell.late_p99_s * 1e3:.0f} ms)"
    return [
        model.name, server.name, tables.count(capacity), tables.times(multiple), tables.count(found.on_time_per_s),
        tables.share(found.on_time_per_s / capacity), tables.milliseconds(found.admitted_p99_s), str(found.late),
        str(found.refused), tables.milliseconds(found.refused_p50_s), tables.milliseconds(found.refused_p95_s),
        str(found.unsent), str(found.unanswered), tables.seconds(found.normal_after_s), remark,
    ]  # fmt: skip


def of_select(run: Run) -> Answer:
    """What a decision costs, by the size of the cluster: `benchmarks/decision.py` says what each figure is."""
    rounds = 2_000 if run.effort.rounds > 1 else 200
    rows, data = [], []
    with run.kit.pins.for_server():
        for instances in DECISION_INSTANCES:
            one = decide(instances, rounds)
            tell(f"decisions among {instances:,} instances")
            rows.append([
                f"{one.instances:,}", f"{one.variants:,}", str(one.workers),
                *(f"{value:.1f}" for value in one.alone_us.values()),
                f"{one.arrival_us:.1f}", f"{one.amortised_us:.1f}", f"{one.view_change_us:.0f}",
            ])  # fmt: skip
            data.append(asdict(one))
    names = [f"{name} µs" for name in one.alone_us]
    headings = ("instances", "variants", "workers", *names, "arrival µs", "of 16 µs", "view change µs")
    title = "Selection: alone by objective, an arrival, each of 16 with forming and answering, one worker's change"
    return Answer(title, tables.table(headings, rows), (), data)


QUESTIONS = {
    "throughput": of_throughput,
    "limits": of_limits,
    "latency": of_latency,
    "overload": of_overload,
    "select": of_select,
}
