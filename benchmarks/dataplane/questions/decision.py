"""What a decision costs, by the size of the cluster: `benchmarks/decision.py` says what each figure is."""

from __future__ import annotations

from dataclasses import asdict

from decision import SIZES
from decision import measure as decide

from dataplane import charts, tables
from dataplane.cells import Run, tell
from dataplane.questions.answer import Answer


def of_decision(run: Run) -> Answer:
    rounds = 2_000 if run.effort.rounds > 1 else 200
    found = []
    with run.kit.pins.for_server():
        for instances in SIZES:
            found.append(decide(instances, rounds))
            tell(f"decisions among {instances:,} instances")
    rows = [
        [
            f"{one.instances:,}", f"{one.variants:,}", str(one.workers),
            *(f"{value:.1f}" for value in one.alone_us.values()),
            f"{one.arrival_us:.1f}", f"{one.amortised_us:.1f}", f"{one.view_change_us:.0f}",
        ]
        for one in found
    ]  # fmt: skip
    names = list(found[0].alone_us)
    headings = (
        "instances", "variants", "workers", *(f"{name} µs" for name in names), "arrival µs", "of 16 µs",
        "view change µs",
    )  # fmt: skip
    drawn = {f"alone, by {name}": [(one.instances, one.alone_us[name]) for one in found] for name in names}
    drawn["an arrival"] = [(one.instances, one.arrival_us) for one in found]
    drawn["one of 16, formed and answered"] = [(one.instances, one.amortised_us) for one in found]
    drawn["a worker's change"] = [(one.instances, one.view_change_us) for one in found]
    return Answer(
        "Decision: alone by objective, an arrival, each of 16 with forming and answering, one worker's change",
        tables.table(headings, rows),
        (),
        [asdict(one) for one in found],
        {"cost": charts.curves("What a decision costs", "instances in the cluster", "µs", drawn)},
    )
