"""What stands between a caller and the model adds: latency at one connection, processor time at one and at many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from dataplane import charts, tables
from dataplane.cells import CONNECTIONS, Run, Started, closed, null_rate, own_systems, started
from dataplane.figures import Round, Throughput, throughput, why_bound
from dataplane.graphs import RESNET, SMALL_CNN, SMALL_MLP, WIDE_MLP, Model
from dataplane.h2 import LARGEST_MESSAGE
from dataplane.offline import Limit, limit_of
from dataplane.own import editions, seen
from dataplane.questions.answer import Answer
from dataplane.servers import BINARY, GRPC, JSON, LeftOut

HEADINGS = (
    "model", "system", "kind", "connections", "p50 ms", "p95 ms", "added p50", "added p95", "CPU µs/query",
    "added CPU µs", "CPU µs of", "remark",
)  # fmt: skip

Key = tuple[str, str, int]
"""System, kind, connections."""


def of_gateway(run: Run, models: Sequence[Model] = (SMALL_MLP, WIDE_MLP, SMALL_CNN, RESNET)) -> Answer:
    """Everybody in turn with ONNX Runtime in one process on the same core, round after round."""
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    with own_systems(run, editions(run.settings)) as (own, missing):
        for model in models:
            with started(run, model, own, run.peers) as up:
                missing += [*up.left_out, *_without_grpc(model)]
                made = _of_model(run, up)
            rows += [row for row, _ in made]
            data += [one for _, one in made]
        shipped = seen(own)
    title = f"Gateway: added over ONNX Runtime in process; medians of {run.effort.rounds}"
    return Answer(title, tables.table(HEADINGS, rows), missing, {"cells": data, "shipped": shipped}, _charts(data))


def _fits_grpc(model: Model) -> bool:
    size = 4
    for part in model.row:
        size *= part
    return size < LARGEST_MESSAGE


def _without_grpc(model: Model) -> list[LeftOut]:
    why = f"a query of {model.name} does not fit one frame, which this load writes"
    return [] if _fits_grpc(model) else [LeftOut(GRPC, why)]


def _of_model(run: Run, up: Started) -> list[tuple[list[str], dict[str, Any]]]:
    limits: list[Limit] = []
    cells: dict[Key, list[Round]] = {}
    nulls: dict[tuple[str, int], float | None] = {}
    kinds = [kind for kind in (BINARY, JSON, GRPC) if kind != GRPC or _fits_grpc(up.prepared.model)]
    loads = [*((kind, 1) for kind in kinds), (BINARY, CONNECTIONS)]
    for _ in range(run.effort.rounds):
        limits.append(limit_of(up.prepared.file, run.kit.pins.server, run.effort.offline_s))
        for kind, connections in loads:
            for server in up.servers:
                if server.understands(kind):
                    cell = closed(up, server, kind, run.effort, connections=connections)
                    cells.setdefault((server.name, kind, connections), []).append(cell)
    for kind, connections in loads:
        nulls[kind, connections] = None if kind == GRPC else null_rate(up, kind, run.effort, connections=connections)
    return [_row(up.prepared.model, key, throughput(rounds), limits, nulls[key[1:]]) for key, rounds in cells.items()]


def _row(
    model: Model, key: Key, one: Throughput, limits: Sequence[Limit], null: float | None
) -> tuple[list[str], dict[str, Any]]:
    name, kind, connections = key
    alone_s, alone_p95_s = median(x.alone_s for x in limits), median(x.alone_p95_s for x in limits)
    alone_cpu_s = median(limit.alone_cpu_s for limit in limits)
    is_alone = connections == 1
    added_p50_s = one.p50_s - alone_s if is_alone else float("nan")  # at many, latency is waiting for each other
    added_p95_s = one.p95_s - alone_p95_s if is_alone else float("nan")
    added_cpu_s = one.cpu_per_query_s - alone_cpu_s
    bound = why_bound(one.rate, one.generator_share, null)
    row = [
        model.name, name, kind, str(connections), tables.milliseconds(one.p50_s), tables.milliseconds(one.p95_s),
        tables.milliseconds(added_p50_s), tables.milliseconds(added_p95_s), tables.microseconds(one.cpu_per_query_s),
        tables.microseconds(added_cpu_s), tables.parts(one.programs_cpu_per_query_s, 1e-6), bound,
    ]  # fmt: skip
    return row, {
        "model": model.name, "system": name, "kind": kind, "connections": connections, **asdict(one),
        "alone_s": alone_s, "alone_cpu_s": alone_cpu_s, "added_p50_s": added_p50_s, "added_p95_s": added_p95_s,
        "added_cpu_s": added_cpu_s, "null_rate": null, "bound": bound,
    }  # fmt: skip


def _charts(data: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Added latency by model and system, and where the processor time of the own system goes."""
    names = list(dict.fromkeys(one["model"] for one in data))
    found = {(one["model"], one["system"], one["kind"]): one for one in data if one["connections"] == 1}
    added = {
        f"{name}, {kind}": [_milliseconds(found.get((model, name, kind))) for model in names]
        for name, kind in dict.fromkeys((name, kind) for _, name, kind in found)
    }
    busy = [one for one in data if one["connections"] != 1 and len(one["programs_cpu_per_query_s"]) > 1]
    programs = list(dict.fromkeys(name for one in busy for name in one["programs_cpu_per_query_s"]))
    parts = {name: [1e6 * one["programs_cpu_per_query_s"].get(name, 0.0) for one in busy] for name in programs}
    return {
        "latency": charts.bars("Added latency at one connection, p50", "ms", names, added),
        "cpu": charts.stacks(
            f"Processor time per query by program, {CONNECTIONS} connections, binary", "µs",
            [f"{one['model']}: {one['system']}" for one in busy], parts,
        ),
    }  # fmt: skip


def _milliseconds(one: Mapping[str, Any] | None) -> float | None:
    return None if one is None else 1e3 * one["added_p50_s"]
