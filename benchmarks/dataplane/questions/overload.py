"""What is still answered on time when there is too much work, and what the others are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dataplane import charts, tables
from dataplane.cells import OpenCell, Run, Started, Steps, closed, null_rate, opened, own_systems, started
from dataplane.figures import throughput, why_bound
from dataplane.graphs import SMALL_CNN, SMALL_MLP, Model
from dataplane.own import editions, seen
from dataplane.questions.answer import Answer
from dataplane.servers import BINARY, Server

DEADLINE_S = 0.1
MULTIPLES = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)
CALM = 0.5
"""Of capacity: what is offered after an overload."""
LATE_S = 0.01
"""A load that leaves later than this, a tenth of the deadline, is not the one that is said."""
HEADINGS = (
    "model", "system", "kind", "capacity/s", "offered", "on time/s", "of capacity", "admitted p99 ms", "late",
    "refused", "refusal p50 ms", "p95 ms", "by its own account p95", "unsent", "unanswered", "normal after s",
    "refused for", "remark",
)  # fmt: skip


def of_overload(
    run: Run, models: Sequence[Model] = (SMALL_CNN, SMALL_MLP), multiples: Sequence[float] = MULTIPLES
) -> Answer:
    """Open loop with a deadline, at multiples of what each system itself answers in a closed loop."""
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    with own_systems(run, editions(run.settings)) as (own, missing):
        for model in models:
            with started(run, model, own, run.peers) as up:
                missing += up.left_out
                for server in up.servers:
                    if server.rest:
                        made = _of_server(run, up, server, multiples)
                        rows += [row for row, _ in made]
                        data += [one for _, one in made]
        shipped = seen(own)
    title = f"Overload: open loop (Poisson), {DEADLINE_S * 1e3:.0f} ms deadline, then {CALM:g}× capacity"
    return Answer(
        title, tables.table(HEADINGS, rows), missing, {"cells": data, "shipped": shipped},
        {model.name: _chart(model, [one for one in data if one["model"] == model.name]) for model in models},
    )  # fmt: skip


def _of_server(
    run: Run, up: Started, server: Server, multiples: Sequence[float]
) -> list[tuple[list[str], dict[str, Any]]]:
    kind = BINARY if server.understands(BINARY) else server.rest[0]
    capacity = throughput([closed(up, server, kind, run.effort) for _ in range(run.effort.rounds)]).rate
    null = null_rate(up, kind, run.effort)
    made = []
    for number, multiple in enumerate(multiples):
        load = Steps(capacity * multiple, run.effort.overload_s, capacity * CALM, run.effort.calm_s)
        cell = opened(up, server, kind, load, DEADLINE_S, number)
        remark = _remark(cell, capacity * multiple, null)
        facts = {"model": up.prepared.model.name, "system": server.name, "kind": kind, "capacity": capacity,
                 "multiple": multiple, "null_rate": null, "remark": remark}  # fmt: skip
        made.append((_row(facts, cell), {**facts, **asdict(cell)}))
    return made


def _remark(cell: OpenCell, offered: float, null: float | None) -> str:
    if cell.late_p99_s > LATE_S:
        return f"the load left late (p99 {cell.late_p99_s * 1e3:.0f} ms)"
    return why_bound(offered, cell.generator_share, null)


def _row(facts: Mapping[str, Any], cell: OpenCell) -> list[str]:
    found = cell.overload
    return [
        facts["model"], facts["system"], facts["kind"], tables.count(facts["capacity"]),
        tables.times(facts["multiple"]), tables.count(found.on_time_per_s),
        tables.share(found.on_time_per_s / facts["capacity"]), tables.milliseconds(found.admitted_p99_s),
        str(found.late), str(found.refused), tables.milliseconds(found.refused_p50_s),
        tables.milliseconds(found.refused_p95_s), tables.milliseconds(found.stated_p95_s), str(found.unsent),
        str(found.unanswered), tables.seconds(found.normal_after_s),
        ", ".join(f"{word} {count}" for word, count in found.refused_by.items()), facts["remark"],
    ]  # fmt: skip


def _chart(model: Model, data: Sequence[Mapping[str, Any]]) -> bytes:
    """Goodput against what is offered, both as multiples of each system's own capacity."""
    drawn: dict[str, list[tuple[float, float]]] = {}
    for one in data:
        share = one["overload"]["on_time_per_s"] / one["capacity"]
        drawn.setdefault(one["system"], []).append((one["multiple"], 100 * share))
    title = f"Answers within {DEADLINE_S * 1e3:.0f} ms, {model.what}"
    return charts.lines(title, "offered, times the system's own capacity", "% of capacity", drawn, top=110)
