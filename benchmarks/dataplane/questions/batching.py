"""What is left of a core's best offline batches when queries come one by one over the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dataplane import charts, tables
from dataplane.cells import CONNECTIONS, Run, Started, closed, null_rate, own_systems, started
from dataplane.figures import Round, ratio, throughput, why_bound
from dataplane.graphs import RESNET, SMALL_CNN, WIDE_MLP, Model
from dataplane.offline import Limit, limit_of
from dataplane.own import editions, seen
from dataplane.questions.answer import Answer
from dataplane.servers import BINARY

CALLERS_PER_ROW = 4
"""Callers for each row of the largest batch that still gains something: while one batch runs and one is staged, there
are as many queries again to make the next one of."""
HEADINGS = (
    "model", "what", "system", "callers", "alone ms", "batch 1 rows/s", "best rows/s", "answers/s", "of the best",
    "CPU µs/query", "CPU µs of", "remark",
)  # fmt: skip


def of_batching(run: Run, models: Sequence[Model] = (WIDE_MLP, SMALL_CNN, RESNET)) -> Answer:
    """INFaaS, and peers that understand it, over binary REST against one process that does nothing but run batches, in
    turn."""
    found: list[Cell] = []
    with own_systems(run, editions(run.settings)) as (own, missing):
        for model in models:
            with started(run, model, own, run.peers) as up:
                missing += up.left_out
                found += _of_model(run, up)
        shipped = seen(own)
    title = "Batching: binary, a connection for each caller, against the best offline batches"
    shares = {
        system: [
            next((one.percent for one in found if (one.model, one.system) == (model, system)), None) for model in models
        ]
        for system in dict.fromkeys(one.system for one in found)
    }
    return Answer(
        f"{title}; medians of {run.effort.rounds}",
        tables.table(HEADINGS, [_row(one) for one in found]),
        missing,
        {"models": [_data(one) for one in found], "shipped": shipped},
        {"share": charts.bars("Share of the best offline batches", "%", [model.name for model in models], shares)},
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """One system with one model."""

    model: Model
    system: str
    callers: int
    rounds: Sequence[Round]
    limits: Sequence[Limit]
    null: float | None

    @property
    def share(self) -> float | None:
        return ratio([cell.rate for cell in self.rounds], [limit.best for limit in self.limits])

    @property
    def percent(self) -> float | None:
        return None if self.share is None else 100 * self.share


def _of_model(run: Run, up: Started) -> list[Cell]:
    limits: list[Limit] = []
    servers = [server for server in up.servers if server.understands(BINARY)]
    cells: dict[str, list[Round]] = {server.name: [] for server in servers}
    callers = CONNECTIONS
    for _ in range(run.effort.rounds):
        limits.append(limit_of(up.prepared.file, run.kit.pins.server, run.effort.offline_s))
        if len(limits) == 1:
            callers = max(CONNECTIONS, CALLERS_PER_ROW * limits[0].gaining_batch)
        for server in servers:
            cells[server.name].append(closed(up, server, BINARY, run.effort, connections=callers))
    null = null_rate(up, BINARY, run.effort, connections=callers)
    return [Cell(up.prepared.model, name, callers, rounds, limits, null) for name, rounds in cells.items()]


def _row(cell: Cell) -> list[str]:
    one, top = throughput(cell.rounds), max(cell.limits, key=lambda limit: limit.best)
    return [
        cell.model.name, cell.model.what, cell.system, str(cell.callers), tables.milliseconds(top.alone_s),
        tables.count(top.rows_per_s[1]), f"{tables.count(top.best)} at {top.best_batch}", tables.count(one.rate),
        tables.share(float("nan") if cell.share is None else cell.share), tables.microseconds(one.cpu_per_query_s),
        tables.parts(one.programs_cpu_per_query_s, 1e-6), why_bound(one.rate, one.generator_share, cell.null),
    ]  # fmt: skip


def _data(cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model.name, "system": cell.system, "callers": cell.callers, "share": cell.share,
        "figures": asdict(throughput(cell.rounds)), "limits": [asdict(limit) for limit in cell.limits],
        "null_rate": cell.null,
    }  # fmt: skip
