"""What is left of a core's best offline batches when queries come one by one over the network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict

from dataplane import charts, tables
from dataplane.cells import CONNECTIONS, Run, closed, null_rate, started
from dataplane.figures import Round, ratio, throughput, why_bound
from dataplane.graphs import RESNET, SMALL_CNN, SMALL_MLP, WIDE_MLP, Model
from dataplane.offline import Limit, limit_of
from dataplane.own import INLINE, PLAIN, seen, systems
from dataplane.questions.answer import Answer
from dataplane.servers import BINARY

HEADINGS = (
    "model", "what", "system", "alone ms", "batch 1 rows/s", "best rows/s", "answers/s", "of the best",
    "CPU µs/query", "CPU µs of", "remark",
)  # fmt: skip


def of_batching(run: Run, models: Sequence[Model] = (WIDE_MLP, SMALL_CNN, RESNET)) -> Answer:
    """INFaaS over binary REST against one process that does nothing but run batches, in turn."""
    rows, data, missing = [], [], []
    shares: dict[str, list[float | None]] = {}
    with ExitStack() as stack:
        editions = [PLAIN, INLINE] if SMALL_MLP in models else [PLAIN]
        own, missing = stack.enter_context(
            systems(
                [edition.with_settings(run.settings) for edition in editions], run.kit.pins,
                budget_s=run.effort.budget_s, variants=run.variants,
            )
        )  # fmt: skip
        for model in models:
            mine = [system for system in own if system.name == PLAIN.name or model is SMALL_MLP]
            with started(run, model, mine, ()) as up:
                missing += up.left_out
                limits: list[Limit] = []
                cells: dict[str, list[Round]] = {server.name: [] for server in up.servers}
                for _ in range(run.effort.rounds):
                    limits.append(limit_of(up.prepared.file, run.kit.pins.server, run.effort.offline_s))
                    for server in up.servers:
                        cells[server.name].append(closed(up, server, BINARY, run.effort))
                null = null_rate(up, BINARY, run.effort)
            top = max(limits, key=lambda limit: limit.best)
            for system in own:
                rounds = cells.get(system.name)
                if rounds is None:
                    shares.setdefault(system.name, []).append(None)
                    continue
                one = throughput(rounds)
                share = ratio([cell.rate for cell in rounds], [limit.best for limit in limits])
                shares.setdefault(system.name, []).append(None if share is None else 100 * share)
                rows.append([
                    model.name, model.what, system.name, tables.milliseconds(top.alone_s),
                    tables.count(top.rows_per_s[1]), f"{tables.count(top.best)} at {top.best_batch}",
                    tables.count(one.rate), tables.share(float("nan") if share is None else share),
                    tables.microseconds(one.cpu_per_query_s), tables.parts(one.programs_cpu_per_query_s, 1e-6),
                    why_bound(one.rate, one.generator_share, null),
                ])  # fmt: skip
                data.append({"model": model.name, "system": system.name, "share": share, "figures": asdict(one),
                             "limits": list(map(asdict, limits)), "null_rate": null})  # fmt: skip
        shipped = seen(own)
    names = [model.name for model in models]
    title = f"Batching: binary, {CONNECTIONS} connections, against the best offline batches"
    return Answer(
        f"{title}; medians of {run.effort.rounds}",
        tables.table(HEADINGS, rows),
        missing,
        {"models": data, "shipped": shipped},
        {"share": charts.bars("Share of the best offline batch throughput", "%", names, shares)},
    )
