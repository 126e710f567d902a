"""The same small model and the same load for everyone: answers per second and processor time per query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import uvloop

from dataplane import charts, tables
from dataplane.cells import (
    CONNECTIONS,
    FAR_MS,
    Run,
    Started,
    closed,
    null_rate,
    own_systems,
    rest_requests,
    slo,
    started,
    tell,
)
from dataplane.figures import Round, Throughput, quantile, ratio, throughput, why_bound
from dataplane.generator import closed_loop, rest_connect
from dataplane.graphs import SMALL_MLP
from dataplane.own import editions, seen
from dataplane.questions.answer import Answer
from dataplane.servers import BINARY, FASTAPI, GRPC, JSON, LeftOut, Server, UnreachableError, quiet
from dataplane.wrk import find_wrk, wrk_rate

KINDS = (BINARY, JSON, GRPC)
HEADINGS = (
    "system", "kind", "answers/s", "lowest–highest", "× FastAPI", "CPU µs/query", "p50 ms", "p95 ms", "failed",
    "generator", "CPU µs of", "remark",
)  # fmt: skip

Cells = dict[tuple[str, str], list[Round]]


def of_peers(run: Run) -> Answer:
    """Closed loop over 32 connections, all systems in turn, round after round."""
    with (
        own_systems(run, editions(run.settings)) as (own, missing),
        started(run, SMALL_MLP, own, run.peers) as up,
    ):
        cells: Cells = {}
        nulls: dict[str, list[float]] = {}
        lost: dict[str, LeftOut] = {}
        for number in range(run.effort.rounds):
            tell(f"round {number + 1} of {run.effort.rounds}")
            for kind in KINDS:
                _round(run, up, kind, cells, nulls, lost)
        checks = _checks(run, up)
        found = {key: throughput(rounds) for key, rounds in cells.items() if key[0] not in lost}
        rows, data = [], []
        for (name, kind), one in found.items():
            rates = [cell.rate for cell in cells[name, kind]]
            # gRPC has no FastAPI of its own: it is held against the binary one.
            over = ratio(rates, [cell.rate for cell in cells.get((FASTAPI, BINARY if kind == GRPC else kind), ())])
            null = max(nulls[kind]) if nulls.get(kind) else None
            bound = why_bound(one.rate, one.generator_share, null)
            rows.append(_row(name, kind, one, over, bound))
            data.append({"system": name, "kind": kind, **asdict(one), "ratio": over, "bound": bound,
                         "null_rate": null, "rates": rates})  # fmt: skip
        title = f"Peers: {SMALL_MLP.what}, {CONNECTIONS} connections, closed loop, SLO headers; "
        return Answer(
            f"{title}medians of {run.effort.rounds}",
            tables.table(HEADINGS, rows) + "\n\n" + _checks_table(checks),
            [*missing, *up.left_out, *lost.values()],
            {"systems": data, "generators": checks, "shipped": seen(own)},
            _charts(found),
        )


def _round(
    run: Run, up: Started, kind: str, cells: Cells, nulls: dict[str, list[float]], lost: dict[str, LeftOut]
) -> None:
    """A peer that breaks down in the middle of a run is lost to the rest of it, and says why in place of its rows."""
    for server in up.servers:
        if not server.understands(kind) or server.name in lost:
            continue
        try:
            seen = closed(up, server, kind, run.effort)
        except UnreachableError as error:
            if server.is_own:
                raise
            tell(f"{server.name} is measured no further: {error}")
            lost[server.name] = LeftOut(server.name, f"it broke down while it was measured: {error}")
        else:
            cells.setdefault((server.name, kind), []).append(seen)
    if kind != GRPC and (rate := null_rate(up, kind, run.effort)) is not None:
        nulls.setdefault(kind, []).append(rate)


def _row(name: str, kind: str, one: Throughput, over: float | None, bound: str) -> list[str]:
    return [
        name, kind, tables.count(one.rate), f"{tables.count(one.lowest)}–{tables.count(one.highest)}",
        tables.times(over), tables.microseconds(one.cpu_per_query_s), tables.milliseconds(one.p50_s),
        tables.milliseconds(one.p95_s), str(one.failed), tables.share(one.generator_share),
        tables.parts(one.programs_cpu_per_query_s, 1e-6), bound,
    ]  # fmt: skip


def _checks(run: Run, up: Started) -> list[dict[str, Any]]:
    """The first system, binary, as one generator after the other sees it, and what each makes of the null server."""
    found = []
    for server in (up.servers[0], up.null):
        if server is not None:
            with quiet(up.everybody, server):
                found += [_check(server, *one) for one in _by_each(run, up, server)]
    return found


def _by_each(run: Run, up: Started, server: Server) -> Iterator[tuple[str, float, float]]:
    asked = rest_requests(server, up.prepared, BINARY, slo(FAR_MS))
    seconds = run.effort.seconds
    if run.load is not None:
        ours = run.load.closed(
            server.address, asked, connections=CONNECTIONS, warm_s=run.effort.warm_s, seconds=seconds
        )
        yield "C", ours.answered / ours.seconds, quantile(ours.latencies_s, 0.5)
    connect = rest_connect(server.address, asked)
    theirs = uvloop.run(
        closed_loop(connect, len(asked), connections=CONNECTIONS, warm_s=run.effort.warm_s, seconds=seconds)
    )
    yield "Python", theirs.answered / theirs.seconds, quantile(theirs.latencies_s, 0.5)
    if (program := find_wrk()) is not None:
        yield "wrk", *wrk_rate(program, server.address, asked, CONNECTIONS, seconds, run.kit.folder)


def _check(server: Server, generator: str, rate: float, p50_s: float) -> dict[str, Any]:
    tell(f"{server.name}, by {generator}: {rate:,.0f}/s")
    return {"generator": generator, "system": server.name, "rate": rate, "p50_s": p50_s}


def _checks_table(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [one["generator"], one["system"], tables.count(one["rate"]), tables.milliseconds(one["p50_s"])]
        for one in checks
    ]
    return tables.table(("generator", "against", "answers/s", "p50 ms"), rows)


def _charts(found: Mapping[tuple[str, str], Throughput]) -> dict[str, bytes]:
    names = list(dict.fromkeys(name for name, _ in found))
    rates = {kind: [found[name, kind].rate if (name, kind) in found else None for name in names] for kind in KINDS}
    costs = {
        kind: [found[name, kind].cpu_per_query_s * 1e6 if (name, kind) in found else None for name in names]
        for kind in KINDS
    }
    what = f"{SMALL_MLP.what}, {CONNECTIONS} connections"
    return {
        "rate": charts.bars(f"Answers per second, {what}", "answers/s", names, rates),
        "cpu": charts.bars(f"Processor time per query, {what}", "µs", names, costs),
    }
