"""Workers that follow the load: steps of 1, 4 and 1 times what one worker can do, each held for a while; how many
queries are answered on time, what is lost when workers go, and how many worker-seconds it takes.

python benchmarks/elastic.py [--held 120] [--deadline 0.5] [--cpu 0.2] [--provider local] [--into FOLDER]
    [--set KEY=VALUE]

Three fleets get the same queries at the same moments: one that follows the load (1 to `--workers` workers), one of one
worker and one of `--workers`. Each is a cluster of its own (controller, generator, Redis); a worker is limited to
`--cpu` of a core, so that all of it fits a small machine. The two fixed ones run beside each other, to save time.

Capacity is what callers who ask one after the other get from one such worker, in the same run; queries are made as
large as it takes for about `--rate` of them a second. The load is open: queries leave on a Poisson schedule whatever
became of those before, every one counts, and its deadline runs from when it was due. Before the trace a while of the
first step is sent and not counted. *Clairvoyant* is the fewest workers in each second for whoever knows the trace, and
how long a worker takes to start, as measured (`infaas/testing/clairvoyant.py`).

Prints a table, and leaves elastic.json, elastic.md and elastic-*.svg in a folder. Below the table stands every bound
that the fleet which follows the load did not keep. Exit status 1 when there is one, unless --quick.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import elastic_figures as figures
import numpy as np
import psutil
from dataplane import charts, tables
from dataplane.command import RESULTS, setting
from elastic_figures import Arm, Coming, Sight, Trace
from infaas_controller.fleet.assembly import PROVIDERS
from own_system import images

from infaas.client import Client
from infaas.control import WorkerDocument
from infaas.demo import family
from infaas.errors import InfaasError
from infaas.settings import load_settings
from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.load import Load, Outcome, Shot, arrivals, query_bytes

MODEL, RECIPE = "digits-cnn-medium", "ort-fp32-t1"
POOL = "small"
MULTIPLES = (1.0, 4.0, 1.0)
CALLERS = 16
WINDOWS = 4
PREPARED = 500
FIRST_ROWS = 8
LOOK_EVERY_S = 0.25
BIN_S = 5.0
SETTINGS = {
    "INFAAS_FLEET__PERIOD_S": "1",
    "INFAAS_FLEET__UPSCALE_DELAY_S": "1",
    "INFAAS_FLEET__DOWNSCALE_DELAY_S": "12",
    "INFAAS_FLEET__TARGET_UTILIZATION": "0.75",
}
"""Of all fleets; those of fixed size have nothing to decide."""


def tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Fleet:
    name: str
    least: int
    most: int

    @property
    def is_scaled(self) -> bool:
        return self.least < self.most


class Running:
    """A cluster whose workers the fleet makes."""

    def __init__(self, cluster: Cluster, fleet: Fleet, variant: str) -> None:
        self.cluster = cluster
        self.fleet = fleet
        self.variant = variant

    def is_ready(self) -> bool:
        """As many workers as there are at least, with the variant loaded on each of them."""
        with self.cluster.client() as client:
            there = [one for one in client.workers() if can_serve(one, self.variant)]
        return len(there) >= self.fleet.least

    def make_ready(self) -> None:
        load = Load(self.cluster.urls, queries(self.variant, 1, 30.0), deadline_s=30.0)
        asyncio.run(load.closed_loop(1, 1.0))
        wait_for(self.is_ready, f"{self.variant} to be on {self.fleet.least} workers")


def can_serve(worker: WorkerDocument, variant: str) -> bool:
    return (
        worker.is_connected
        and worker.state == "READY"
        and any(one.variant == variant and one.state == "READY" for one in worker.instances)
    )


class Lookout(contextlib.AbstractAsyncContextManager["Lookout"]):
    """Looks at a fleet now and then, in a thread, from before the trace until after it."""

    def __init__(self, running: Running, began: float) -> None:
        """`began`: when the trace does, on the monotonic clock."""
        self._client = Client(running.cluster.urls()[0], timeout_s=10.0)
        self._variant = running.variant
        self._began = began
        self._wall = time.time() - (time.monotonic() - began)
        self._is_over = asyncio.Event()
        self.sights: list[Sight] = []
        self.missed = 0
        self._seen: dict[str, Coming] = {}

    async def __aenter__(self) -> Lookout:
        self._task = asyncio.create_task(self._run(), name="lookout")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over.set()
        await self._task
        self._client.close()

    async def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                await asyncio.to_thread(self._look)
            except InfaasError as error:
                self.missed += 1
                tell(f"the fleet could not be seen: {error}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_over.wait(), LOOK_EVERY_S)

    def _look(self) -> None:
        workers, fleet = self._client.workers(), self._client.fleet()
        at = time.monotonic() - self._began
        (pool,) = [one for one in fleet.pools if one.name == POOL]
        paid = pool.ordered + pool.starting + pool.ready + pool.draining + pool.lost
        serving = sum(can_serve(one, self._variant) for one in workers)
        self.sights.append(Sight(at, paid, serving, fleet.demand_cores, fleet.wanted_cores))
        for one in workers:
            seen = self._seen.setdefault(one.id, Coming(one.id, math.nan))
            if seen.connected_s is None and one.is_connected and one.state == "READY":
                seen.connected_s = at
            if seen.serving_s is None and can_serve(one, self._variant):
                seen.serving_s = at
            if seen.answered_s is None and any(each.items_done for each in one.instances):
                seen.answered_s = at

    def told(self) -> tuple[list[Mapping[str, object]], list[Coming]]:
        """Steps, oldest first, with when they were in the trace; how those came that were ordered within our sight."""
        steps: list[Mapping[str, object]] = []
        coming: list[Coming] = []
        for step in self._client.fleet_steps(1000)[::-1]:
            at = datetime.fromisoformat(step.at).timestamp() - self._wall
            steps.append({"at_s": at} | asdict(step))
            if step.action == "add" and step.worker is not None and self.sights and at >= self.sights[0].at_s:
                seen = self._seen.get(step.worker, Coming(step.worker, at))
                seen.ordered_s = at
                coming.append(seen)
        return steps, coming


def queries(variant: str, rows: int, deadline_s: float) -> list[bytes]:
    data, draw = images(), np.random.default_rng(1)
    headers = {"x-infaas-slo-latency-ms": f"{deadline_s * 1e3:g}", "x-infaas-slo-accuracy-min": "0"}
    batches = (data[draw.integers(len(data), size=rows)] for _ in range(PREPARED))
    return [query_bytes(variant, {family.INPUT: batch}, headers) for batch in batches]


async def capacity(running: Running, rows: int, seconds: float) -> float:
    """Queries per second of the one worker there is, in the best of some windows: the host takes time now and then."""
    load = Load(running.cluster.urls, queries(running.variant, rows, 30.0), deadline_s=30.0)
    await load.closed_loop(CALLERS, seconds / WINDOWS)
    rates = []
    for _ in range(WINDOWS):
        outcome = await load.closed_loop(CALLERS, seconds / WINDOWS)
        if outcome.failed:
            raise SystemExit(f"the worker does not answer: {outcome.failed}")
        rates.append(len(outcome.shots) / max(shot.ended_s for shot in outcome.shots))
    return max(rates)


async def sized(running: Running, rate: float, seconds: float, most_rows: int) -> tuple[int, float]:
    """Rows per query for about `rate` of them a second, and how many there are then."""
    found = await capacity(running, FIRST_ROWS, seconds / 4)
    rows = min(most_rows, max(1, round(FIRST_ROWS * found / rate)))
    return rows, await capacity(running, rows, seconds)


async def measured(running: Running, trace: Trace, prepared: Sequence[bytes], deadline_s: float) -> Arm:
    """One fleet under the trace, and what was seen of it."""
    warm_s = -min(0.0, math.floor(trace.schedule[0]))
    load = Load(running.cluster.urls, prepared, deadline_s=deadline_s)
    cpu_s, machine, began = time.process_time(), psutil.cpu_times(), time.monotonic()
    async with Lookout(running, began + warm_s) as lookout:
        outcome = await load.run([due + warm_s for due in trace.schedule])
        cpu_share = (time.process_time() - cpu_s) / (time.monotonic() - began)
        busy_share = _busy_share(machine, psutil.cpu_times())
        steps, coming = await asyncio.to_thread(lookout.told)
    shots = [Shot(one.due_s - warm_s, one.ended_s - warm_s, one.code, one.attempts) for one in outcome.shots]
    sights = [one for one in lookout.sights if 0.0 <= one.at_s <= trace.seconds]
    return Arm(
        running.fleet.name, running.fleet.is_scaled,
        Outcome(tuple(one for one in shots if one.due_s >= 0.0), deadline_s), sights, coming, steps,
        {"callers_share_of_a_core": cpu_share, "machine_busy_share": busy_share, "looks_missed": lookout.missed},
    )  # fmt: skip


def _busy_share(before: Any, after: Any) -> float:
    """Of all cores' time, with what the host took."""
    spent: dict[str, float] = {name: getattr(after, name) - getattr(before, name) for name in after._fields}
    return 1.0 - (spent["idle"] + spent.get("iowait", 0.0)) / sum(spent.values())


def trace_of(rate: float, options: argparse.Namespace) -> Trace:
    first = arrivals(rate * MULTIPLES[0], options.warm_up, options.seed)
    schedule = [at - options.warm_up for at in first]
    for number, multiple in enumerate(MULTIPLES):
        own = arrivals(rate * multiple, options.held, options.seed + 1 + number)
        schedule += [number * options.held + at for at in own]
    return Trace(schedule, rate, options.held, MULTIPLES)


# -- clusters


@contextlib.contextmanager
def cluster_of(fleet: Fleet, folder: Path, options: argparse.Namespace, parent: Path | None) -> Iterator[Cluster]:
    """With catalogue and artifacts of an earlier one, which has ended, if one is given: models are the same then."""
    folder.mkdir()
    settings = {
        **SETTINGS,
        "INFAAS_FLEET__PROVIDER": options.provider,
        "INFAAS_FLEET__FOLDER": str(folder / "fleet"),
        "INFAAS_CONTROLLER__MIN_REPLICAS": str(1 if fleet.is_scaled else fleet.least),
        "INFAAS_POOLS": json.dumps(
            {
                POOL: {
                    "workers": 0, "min_workers": fleet.least, "max_workers": fleet.most, "cores": 1,
                    "memory_bytes": 300_000_000, "cpu_limit": options.cpu,
                }
            }
        ),
        "INFAAS_WORKER__POOL": POOL,
        **_of_containers(folder, options.provider),
        **options.set,
    }  # fmt: skip
    cluster = Cluster(folder, controllers=1, workers=0, settings=settings, fleet_workers=fleet.least)
    if parent is not None:
        shutil.copytree(parent / "catalogue", folder / "catalogue", dirs_exist_ok=True)
        shutil.copytree(parent / "artifacts", folder / "artifacts")
    try:
        with cluster.running():
            yield cluster
    finally:  # nobody leads any more, and a start that failed may have ordered some, too
        asyncio.run(dismissed(options.provider, {**settings, "INFAAS_STORE__REDIS_URL": cluster.redis_url}))


def _of_containers(folder: Path, provider: str) -> dict[str, str]:
    """What workers in containers need besides: the store's socket and the artifacts, where we have them too, a token,
    and a name by which they are found when nobody leads any more."""
    if provider != "docker":
        return {}
    return {
        "INFAAS_FLEET__DOCKER__VOLUMES": json.dumps([f"{folder}:{folder}"]),
        "INFAAS_FLEET__DOCKER__CLUSTER": f"elastic-{os.getpid()}-{folder.name}",
        "INFAAS_AUTH__CLUSTER_TOKEN": secrets.token_hex(16),
    }


async def dismissed(name: str, settings: Mapping[str, str]) -> None:
    """Until nothing is left of what the fleet made."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("INFAAS_")}
    provider = PROVIDERS[name](load_settings(environ={**own, **settings}))
    while left := await provider.list():
        for machine in left:
            await provider.remove(machine.order.id)
        await asyncio.sleep(0.1)


def variant_of(client: Client) -> str:
    return next(one.name for one in client.variants(model=MODEL) if one.recipe == RECIPE)


@contextlib.contextmanager
def running_of(fleet: Fleet, folder: Path, options: argparse.Namespace, parent: Path | None) -> Iterator[Running]:
    tell(f"{fleet.name}: starting")
    with cluster_of(fleet, folder, options, parent) as cluster:
        if parent is None:
            cluster.register(MODEL)
        else:
            cluster.wait_serving(MODEL)
        with cluster.client() as client:
            running = Running(cluster, fleet, variant_of(client))
        running.make_ready()
        yield running


def run(folder: Path, options: argparse.Namespace) -> tuple[Trace, int, list[Arm]]:
    """The trace, rows per query, and what became of it with each fleet."""
    one = Fleet("one worker, fixed", 1, 1)
    many = Fleet(f"{options.workers} workers, fixed", options.workers, options.workers)
    scaled = Fleet(f"follows the load (1 to {options.workers})", 1, options.workers)
    with running_of(one, folder / "first", options, None) as running:
        with running.cluster.client() as client:
            most_rows = client.variant(running.variant).max_batch_size
        rows, found = asyncio.run(sized(running, options.rate, options.calibration, most_rows))
        variant = running.variant
    trace = trace_of(found, options)
    tell(f"one worker does {found:.1f} queries/s of {rows} rows; the trace has {sum(trace.counts())}")
    prepared = queries(variant, rows, options.deadline)
    with running_of(scaled, folder / "scaled", options, folder / "first") as running:
        tell(f"{scaled.name}: {options.warm_up:g} s of warm-up and {trace.seconds:g} s of load")
        arms = [asyncio.run(measured(running, trace, prepared, options.deadline))]
    if options.alone:
        return trace, rows, arms
    with (
        running_of(one, folder / "one", options, folder / "first") as first,
        running_of(many, folder / "many", options, folder / "first") as second,
    ):
        tell(f"{one.name}, {many.name}: the same")

        async def both() -> list[Arm]:
            found = [measured(each, trace, prepared, options.deadline) for each in (first, second)]
            return list(await asyncio.gather(*found))

        arms += asyncio.run(both())
    return trace, rows, arms


# -- what is said


def table(found: Sequence[Mapping[str, object]]) -> str:
    headings = (
        "fleet", "queries", "on time", "outside 10 s after steps", "refused", "late or failed", "lost as workers went",
        "p50 ms", "p95 ms", "p99 ms", "worker-seconds", "of clairvoyant",
    )  # fmt: skip
    return tables.table(headings, [_row(one) for one in found])


def _row(seen: Mapping[str, object]) -> list[str]:
    failed, gone = seen["failed"], seen["lost"]
    assert isinstance(failed, dict)
    assert isinstance(gone, dict)
    refused = sum(failed.values()) - sum(gone.values())
    return [
        str(seen["arm"]),
        f"{seen['queries']:,}",
        f"{seen['attainment']:.2%}",
        f"{seen['attainment_settled']:.2%}",
        f"{refused:,}",
        _by_cause(gone),
        f"{_by_cause(seen['lost_on_scale_down'])} of {seen['in_flight_on_scale_down']}" if seen["departures"] else "–",
        *[f"{_number(seen[name]) * 1e3:.0f}" for name in ("p50_s", "p95_s", "p99_s")],
        f"{seen['worker_seconds']:,.0f}",
        f"{seen['of_clairvoyant']:.2f}×",
    ]


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _by_cause(counts: object) -> str:
    assert isinstance(counts, dict)
    return ", ".join(f"{count} {code}" for code, count in sorted(counts.items())) or "0"


def timeline(coming: Sequence[Coming], trace: Trace) -> str:
    """How the workers came that were ordered after the load rose, in seconds after that."""
    step = trace.steps_s[0]

    def after(at: float | None) -> str:
        return "–" if at is None else f"{at - step:.1f}"

    rows = [
        [one.worker, after(one.ordered_s), after(one.connected_s), after(one.serving_s), after(one.answered_s)]
        for one in coming
        if one.ordered_s >= step
    ]
    return tables.table(("ordered after the load rose", "ordered", "READY", "variant READY", "had answered"), rows)


def pictures(trace: Trace, arms: Sequence[Arm]) -> dict[str, bytes]:
    drawn = {}
    scaled = next(arm for arm in arms if arm.is_scaled)
    load = [(second + 0.5, count / trace.capacity) for second, count in enumerate(trace.counts())]
    drawn["workers"] = charts.lines(
        "Workers and load", "seconds", "workers",
        {
            "load, in workers' capacities": load,
            "workers paid for": _stairs([(one.at_s, one.paid) for one in scaled.sights]),
            "workers that serve": _stairs([(one.at_s, one.serving) for one in scaled.sights]),
        },
    )  # fmt: skip
    drawn["attainment"] = charts.lines(
        f"Answered within {scaled.outcome.deadline_s * 1e3:g} ms", "seconds", "percent of queries",
        {arm.name: figures.attainment_over_time(arm.outcome, trace.seconds, BIN_S) for arm in arms}, top=100.0,
    )  # fmt: skip
    return drawn


def _stairs(points: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
    """Corners only."""
    found: list[tuple[float, float]] = []
    for at, value in points:
        if found and found[-1][1] != value:
            found.append((at, found[-1][1]))
        if not found or found[-1][1] != value:
            found.append((at, float(value)))
    return [*found, (points[-1][0], float(points[-1][1]))] if points else []


def report(trace: Trace, rows: int, arms: Sequence[Arm], options: argparse.Namespace) -> int:
    scaled = next(arm for arm in arms if arm.is_scaled)
    start_s = figures.startup_s(scaled.coming)
    fewest = figures.fewest_worker_seconds(trace, 0.0 if math.isnan(start_s) else start_s)
    found = [figures.figures(arm, trace, fewest) for arm in arms]
    broken = figures.broken(found[list(arms).index(scaled)])
    said = "\n".join(
        [
            "",
            f"## {' → '.join(f'{each:g}×' for each in trace.multiples)} of one worker, each {trace.held_s:g} s",
            "",
            f"Workers by `{options.provider}`, {options.cpu:g} of a core each; one does {trace.capacity:.1f} queries/s "
            f"of {rows} rows. Deadline {options.deadline * 1e3:g} ms. A worker takes {start_s:.1f} s to start; whoever "
            f"knows the trace needs {fewest:,.0f} worker-seconds.",
            "",
            table(found),
            "",
            timeline(scaled.coming, trace),
            "",
            *([f"broken: {one}" for one in broken] or ["all bounds kept"]),
            "",
        ]
    )
    print(said, flush=True)
    options.into.mkdir(parents=True, exist_ok=True)
    name = "elastic" if options.provider == "local" else f"elastic-{options.provider}"
    (options.into / f"{name}.md").write_text(said)
    data = {
        "command": sys.argv,
        "provider": options.provider,
        "cpu_limit": options.cpu,
        "deadline_s": options.deadline,
        "held_s": trace.held_s,
        "multiples": trace.multiples,
        "capacity": trace.capacity,
        "rows": rows,
        "startup_s": start_s,
        "clairvoyant_worker_seconds": fewest,
        "settings": {**SETTINGS, **options.set},
        "is_quick": options.quick,
        "broken": broken,
        "arms": found,
        "coming": [asdict(one) for one in scaled.coming],
        "steps": scaled.steps,
        "counts": trace.counts(),
        "sights": {arm.name: [asdict(one) for one in arm.sights] for arm in arms},
    }
    (options.into / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    for picture, drawn in pictures(trace, arms).items():
        (options.into / f"{name}-{picture}.svg").write_bytes(drawn)
    return 1 if broken and not options.quick else 0


def environment_setting(text: str) -> tuple[str, str]:
    """KEY=VALUE as a variable of the environment."""
    key, value = setting(text)
    return f"INFAAS_{key.upper().replace('.', '__')}", value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held", type=float, default=120.0, help="seconds of each step (120)")
    parser.add_argument("--warm-up", type=float, default=25.0, help="seconds of the first step before the trace (25)")
    parser.add_argument("--deadline", type=float, default=0.5, help="seconds from when a query is due (0.5)")
    parser.add_argument("--cpu", type=float, default=0.2, help="of a core, for each worker (0.2)")
    parser.add_argument("--workers", type=int, default=6, help="at most (6)")
    parser.add_argument("--rate", type=float, default=30.0, help="queries a second of one worker, about (30)")
    parser.add_argument("--calibration", type=float, default=12.0, help="seconds to measure capacity in (12)")
    parser.add_argument("--provider", choices=sorted(PROVIDERS), default="local")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--set", action="append", type=environment_setting, default=[], metavar="KEY=VALUE",
        help="a setting of the system, such as fleet.period_s=2; may be repeated",
    )  # fmt: skip
    parser.add_argument("--alone", action="store_true", help="without the fleets of fixed size")
    parser.add_argument("--quick", action="store_true", help="short: that it works, not how well; bounds are only said")
    parser.add_argument("--into", type=Path, default=RESULTS, metavar="FOLDER", help=f"for files ({RESULTS.name})")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of everything that is to be undone
    options.set = dict(options.set)
    if options.quick:
        options.held, options.warm_up, options.calibration = min(options.held, 12.0), 5.0, 4.0
    with tempfile.TemporaryDirectory(prefix="infaas-", ignore_cleanup_errors=True) as folder:
        if options.provider == "docker":  # whose workers are another user, to whom sockets must be open
            os.umask(0)
            Path(folder).chmod(0o755)
        trace, rows, arms = run(Path(folder), options)
    return report(trace, rows, arms, options)


if __name__ == "__main__":
    sys.exit(main())
