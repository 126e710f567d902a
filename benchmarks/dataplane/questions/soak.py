"""Many queries, some taken back and some malformed: that all is answered, and nothing stays of them."""

from __future__ import annotations

from dataclasses import asdict

from soak import Length, soaked, summary

from dataplane import charts, tables
from dataplane.cells import Run
from dataplane.own import Edition
from dataplane.questions.answer import Answer
from dataplane.servers import INFAAS

HEADINGS = ("process", "memory MiB", "at the end", "MiB an hour", "descriptors", "at the end", "threads", "at the end",
            "tasks", "at the end")  # fmt: skip


def of_soak(run: Run) -> Answer:
    length = Length(run.effort.soak_s, None, run.effort.soak_queries)
    environ = Edition(INFAAS, run.settings).environ()
    report = soaked(length, seed=1, is_quiet=False, place=run.kit.pins.for_server, environ=environ)
    first, last = report.rounds[0].samples, report.rounds[-1].samples
    rows = [
        [
            name, f"{before.memory_bytes / 2**20:.1f}", f"{last[name].memory_bytes / 2**20:.1f}",
            f"{report.memory_slope_bytes_per_s[name] * 3_600 / 2**20:+.1f}", str(before.descriptors),
            str(last[name].descriptors), str(before.threads), str(last[name].threads), _or_dash(before.tasks),
            _or_dash(last[name].tasks),
        ]
        for name, before in first.items()
    ]  # fmt: skip
    drawn = {name: [(one.at_s / 60, one.samples[name].memory_bytes / 2**20) for one in report.rounds] for name in first}
    return Answer(
        f"Soak: {length.seconds:.0f} s",
        "\n".join([tables.table(HEADINGS, rows), "", *summary(report)]),
        (),
        asdict(report),
        {"memory": charts.lines("Memory of each process under a soak (USS)", "minutes", "MiB", drawn)},
        is_kept=report.is_clean,
    )


def _or_dash(value: int | None) -> str:
    return "–" if value is None else str(value)
