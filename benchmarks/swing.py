"""One worker under a load that swings: 4, 400 and 4 queries a second, with variants that may be exchanged and without.

python benchmarks/swing.py [--low 4] [--high 400] [--held 60] [--deadline 200] [--repeats 1] [--json FILE]

Two models answer the same question, in single precision: `lean` is many convolutions, small, and takes as long for
each row as for one; `wide` is large, and does a batch in little more time than a row. Both are random features with a
last layer that is fitted to one half of the demo's rows; the other half measures them. Queries ask for the task with a
deadline and no floor, so that any variant of both will do.

Cost is what nobody else can have meanwhile: of each half second, the larger of the share of the worker's cores that its
process used (as the system counts it) and the share of its memory that its instances hold, at the pool's price. All
queries count; a deadline runs from the moment at which a query was due. The two systems take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from own_system import TASK, images, own_state

from infaas.client import Client
from infaas.demo import family
from infaas.domain.variant import Precision
from infaas.errors import InfaasError
from infaas.testing import nets
from infaas.testing.load import OK, Load, Outcome, arrivals, query_bytes

CORES = 2
MEMORY_BYTES = 2**30
PRICE_USD_PER_HOUR = 0.04
LOOK_EVERY_S = 0.5
POOL = {"workers": 1, "cores": CORES, "memory_bytes": MEMORY_BYTES, "price_usd_per_hour": PRICE_USD_PER_HOUR}
SETTINGS = {
    "INFAAS_POOLS": json.dumps({"local": POOL}),
    "INFAAS_WORKER__AUTOSCALING__DOWNSCALE_DELAY_S": "10",
    "INFAAS_GENERATOR__MAX_BATCH_SIZE": "32",
}


@dataclass
class Meter:
    """What a worker costs, looked at each half second."""

    client: Client
    pid: int
    usd: float = 0.0
    core_s: float = 0.0
    mib_s: float = 0.0
    held: dict[str, float] = field(default_factory=dict)
    """Seconds that each variant was loaded for, in instances."""
    missed: int = 0
    """Looks that the controller did not answer."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        memory = {one.name: one.resident_memory_bytes or 0 for one in self.client.variants()}
        process = psutil.Process(self.pid)
        at, used, loaded = time.monotonic(), _cpu_s(process), list[str]()
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                instances = [one for worker in self.client.workers() for one in worker.instances]
                loaded = [one.variant for one in instances if one.state == "READY"]
            except InfaasError:  # too busy to say; what was loaded half a second ago is taken to be so still
                self.missed += 1
            now, ran = time.monotonic(), _cpu_s(process)
            took_s, core_s = now - at, ran - used
            held_bytes = sum(memory[variant] for variant in loaded)
            share = max(core_s / took_s / CORES, held_bytes / MEMORY_BYTES)
            self.usd += share * took_s * CORES * PRICE_USD_PER_HOUR / 3600
            self.core_s += core_s
            self.mib_s += held_bytes / 2**20 * took_s
            for variant in loaded:
                self.held[variant] = self.held.get(variant, 0.0) + took_s
            at, used = now, ran

    def stop(self) -> None:
        self._stop.set()


def _cpu_s(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


@dataclass
class Phase:
    """A level of the load, as callers saw it and as the worker paid for it."""

    system: str
    rate: float
    queries: int
    on_time: float
    p50_ms: float
    p99_ms: float
    failed: Mapping[str, int]
    usd_per_1k: float
    core_ms: float
    """Of the worker, per query that was answered on time."""
    mib: float
    """That instances held, on average."""
    held: Mapping[str, float]
    looks_missed: int


def measured(system: str, rate: float, seconds: float, outcome: Outcome, meter: Meter, deadline_s: float) -> Phase:
    good = sum(shot.code == OK and shot.took_s <= deadline_s for shot in outcome.shots)
    return Phase(
        system,
        rate,
        len(outcome.shots),
        good / len(outcome.shots),
        1e3 * outcome.percentile_s(0.5),
        1e3 * outcome.percentile_s(0.99),
        dict(outcome.failed),
        1e3 * meter.usd / max(good, 1),
        1e3 * meter.core_s / max(good, 1),
        meter.mib_s / seconds,
        {name: round(held_s, 1) for name, held_s in meter.held.items()},
        meter.missed,
    )


def swing(system: str, told: argparse.Namespace, folder: Path, seed: int) -> tuple[list[Phase], list[dict[str, Any]]]:
    exchange = {"INFAAS_WORKER__AUTOSCALING__EXCHANGE": "true" if system == "exchange" else "false"}
    deadline_s = told.deadline / 1e3
    headers = {"x-infaas-slo-latency-ms": f"{told.deadline:g}", "x-infaas-slo-accuracy-min": "0"}
    queries = [query_bytes(TASK, {family.INPUT: row[None]}, headers) for row in images()]
    phases: list[Phase] = []
    with own_state(budget_s=told.budget, settings={**SETTINGS, **exchange}) as (client, state):
        for name in (nets.LEAN, nets.WIDE):
            client.register(folder / f"{name}.onnx", task=TASK, name=name, evaluation=folder / nets.EVAL_FILE)
            _wait_built(client, name)
        for one in client.variants():
            if one.precision != Precision.FP32:
                client.disable_variant(one.name)
        print(variants(client), flush=True)
        (pid,) = _workers(state)
        load = Load(lambda: [client.url], queries, deadline_s=deadline_s)
        asyncio.run(load.run([0.5 * number for number in range(40)]))  # whatever is asked first is loaded, and settles
        for number, rate in enumerate((told.low, told.high, told.low)):
            meter = Meter(client, pid)
            watch = threading.Thread(target=meter.run)
            watch.start()
            due = list(arrivals(rate, told.held, 1000 * seed + number))
            outcome = asyncio.run(load.run(due))
            meter.stop()
            watch.join()
            phases.append(measured(system, rate, told.held, outcome, meter, deadline_s))
        steps = [asdict(step) for step in client.scaling_steps(200)]
    return phases, steps[::-1]


def _wait_built(client: Client, name: str) -> None:
    while (version := client.version(name, 1)).state != "READY":
        if version.state == "FAILED":
            raise SystemExit(f"{name} is FAILED: {version.reason}")
        time.sleep(0.5)


def _workers(state: Path) -> list[int]:
    """Processes that run a worker of this system."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environ = process.info["environ"] or {}
        if environ.get("INFAAS_STATE_DIR") == str(state) and "worker" in (process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def variants(client: Client) -> str:
    """What there is to choose from, as it was measured."""
    lines = ["| variant | accuracy | MiB | p50 ms of one | rows/s at best | load ms |", "|--|--|--|--|--|--|"]
    for one in client.variants():
        if one.state == "READY" and one.accuracy is not None:
            mib = (one.resident_memory_bytes or 0) / 2**20
            times = f"{one.p50_ms or 0:.2f} | {one.throughput_per_s or 0:.0f} | {one.warm_load_ms or 0:.0f}"
            lines.append(f"| {one.name} | {one.accuracy.value:.3f} | {mib:.0f} | {times} |")
    return "\n".join(lines)


def table(phases: Sequence[Phase]) -> str:
    lines = [
        "| system | queries/s | queries | on time | p50 ms | p99 ms | USD per million | core ms each | MiB held "
        "| loaded (s) |",
        "|--|--|--|--|--|--|--|--|--|--|",
    ]
    for one in phases:
        held = ", ".join(f"{name} {held_s:.0f}" for name, held_s in sorted(one.held.items(), key=lambda each: -each[1]))
        lines.append(
            f"| {one.system} | {one.rate:g} | {one.queries} | {one.on_time:.2%} | {one.p50_ms:.1f} | {one.p99_ms:.1f} "
            f"| {1e3 * one.usd_per_1k:.3g} | {one.core_ms:.2f} | {one.mib:.0f} | {held} |"
        )
    return "\n".join(lines)


def totals(phases: Sequence[Phase]) -> str:
    lines = []
    for system in sorted({one.system for one in phases}):
        own = [one for one in phases if one.system == system]
        queries = sum(one.queries for one in own)
        good = sum(one.on_time * one.queries for one in own)
        usd = sum(one.usd_per_1k * one.on_time * one.queries for one in own)
        lines.append(f"{system}: {good / queries:.2%} of {queries} on time, {1e3 * usd / good:.3g} USD per million")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--low", type=float, default=4.0, help="queries per second")
    parser.add_argument("--high", type=float, default=400.0)
    parser.add_argument("--held", type=float, default=60.0, help="seconds for each of the three levels")
    parser.add_argument("--deadline", type=float, default=200.0, help="milliseconds")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of profiling for each variant")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    phases: list[Phase] = []
    steps: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="infaas-") as name:
        folder = nets.written(Path(name))
        for repeat in range(told.repeats):
            order = ("replicate", "exchange") if repeat % 2 == 0 else ("exchange", "replicate")
            for system in order:
                found, did = swing(system, told, folder, repeat + 1)
                phases += found
                steps[f"{system} {repeat + 1}"] = did
                print(table(found), flush=True)
                for step in did:
                    print("  ", step["at"], step["action"], step["cause"], step["variant"], step["reason"], flush=True)
    print(f"\n{table(phases)}\n\n{totals(phases)}")
    if told.json:
        told.json.write_text(json.dumps({"phases": [asdict(one) for one in phases], "steps": steps}, indent=1))


if __name__ == "__main__":
    main()
