"""The fault table: what is lost under load, how many queries fail by it, how late the latest answer is, how soon all is
whole again.

python benchmarks/faults.py [--rate 200] [--load 0.6] [--deadline 2.0] [--only WORD,WORD] [--database-url URL]

Two controllers, three workers and a generator, each a process, with a Redis of their own; every variant that serves is
on all workers (`controller.min_replicas`). A query is made as large as it must be for `--rate` of them to be `--load`
of what one controller and all workers but one can do on this machine, callers included. Queries leave on a Poisson
schedule and hardly any is sent twice, for an input that was running when something died is suspected for a while.
Callers never retry, but where a controller is killed: there once, on the other one.

An answer or error later than a second after its deadline counts as hung.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

import numpy as np
from own_system import images

from infaas.demo import family
from infaas.testing import faults
from infaas.testing.cluster import Cluster
from infaas.testing.load import Load, query_bytes

MODEL = "digits-cnn-medium"
WORKERS = 3
SETTINGS = {"INFAAS_CONTROLLER__MIN_REPLICAS": str(WORKERS)}
CALLERS = 24
CALIBRATION_S = 2.0
MOST_ROWS = 256
PREPARED = 2_000


def prepared(rows: int, deadline_s: float) -> list[bytes]:
    """Each of other rows, out of the few that there are."""
    data, draw = images(), np.random.default_rng(1)
    headers = {"x-infaas-slo-latency-ms": f"{deadline_s * 1e3:g}", "x-infaas-slo-accuracy-min": "0"}
    batches = (data[draw.integers(len(data), size=rows)] for _ in range(PREPARED))
    return [query_bytes(MODEL, {family.INPUT: batch}, headers) for batch in batches]


async def capacity(cluster: Cluster, rows: int) -> float:
    """Queries per second that the first controller answers to callers who ask one after the other."""
    load = Load(cluster.urls, prepared(rows, 30.0), deadline_s=30.0)
    await load.closed_loop(CALLERS, CALIBRATION_S / 2)  # instances get loaded
    outcome = await load.closed_loop(CALLERS, CALIBRATION_S)
    if outcome.failed:
        raise SystemExit(f"the cluster does not answer: {outcome.failed}")
    return len(outcome.shots) / max(shot.ended_s for shot in outcome.shots)


async def capacity_of_the_rest(cluster: Cluster, rate: float, share: float) -> tuple[int, float]:
    """As `sized`, with a worker less than there are."""
    await capacity(cluster, 1)
    await asyncio.to_thread(cluster.kill, cluster.workers[-1])
    await asyncio.to_thread(cluster.wait_spread, list(cluster.places()), WORKERS - 1)
    found = await sized(cluster, rate, share)
    await asyncio.to_thread(cluster.start, cluster.workers[-1])
    await asyncio.to_thread(cluster.wait_whole)
    return found


def make_ready(cluster: Cluster, fault: faults.Fault) -> None:
    """Every variant that serves is on all workers, in processes of its own where the fault needs that."""
    isolation = "process" if fault.is_isolated else None
    if not any(cluster.places(isolation).values()):
        if isolation is not None:
            cluster.isolate(MODEL, isolation)
        asyncio.run(capacity(cluster, 1))
    cluster.wait_spread(list(cluster.places()), WORKERS, isolation)


async def sized(cluster: Cluster, rate: float, share: float) -> tuple[int, float]:
    """Rows per query, and the capacity for such queries."""
    wanted = rate / share
    rows, found = 1, await capacity(cluster, 1)
    if found < wanted:
        raise SystemExit(f"this machine does {found:.0f} queries/s; {rate:.0f}/s would be {rate / found:.0%} load")
    too_many = MOST_ROWS
    while too_many - rows > max(1, rows // 8):
        more = min(rows * 2, (rows + too_many) // 2)
        at_more = await capacity(cluster, more)
        if at_more < wanted:
            too_many = more
        else:
            rows, found = more, at_more
    return rows, found


def row(result: faults.Result) -> str:
    outcome = result.outcome
    failed = ", ".join(f"{count} {code}" for code, count in sorted(outcome.failed.items())) or "0"
    beyond = outcome.worst_beyond_deadline_s()
    late = f"{beyond:+.2f} s"
    return (
        f"| {result.fault.name} | {len(outcome.shots)} | {failed} | {outcome.retried} | {outcome.hung} | "
        f"{outcome.percentile_s(0.99) * 1e3:.0f} ms | {late} | {result.served_after_s:.1f} s | "
        f"{result.whole_after_s:.1f} s |"
    )


def as_json(result: faults.Result) -> dict[str, object]:
    outcome = result.outcome
    return {
        "fault": result.fault.name,
        "queries": len(outcome.shots),
        "failed": dict(outcome.failed),
        "retried": outcome.retried,
        "hung": outcome.hung,
        "p99_s": outcome.percentile_s(0.99),
        "worst_beyond_deadline_s": outcome.worst_beyond_deadline_s(),
        "served_after_s": result.served_after_s,
        "whole_after_s": result.whole_after_s,
    }


def table(cluster: Cluster, options: argparse.Namespace, has_small_disk: bool) -> list[faults.Result]:
    rows, found = asyncio.run(capacity_of_the_rest(cluster, options.rate, options.load))
    print(
        f"{options.rate:.0f} queries/s of {rows} rows each = {options.rate / found:.0%} of the {found:.0f}/s "
        f"that one controller and {WORKERS - 1} of {WORKERS} workers do; deadline {options.deadline:g} s"
    )
    print("| lost | queries | failed | retried | hung | p99 | slowest beyond deadline | failures ended | whole again |")
    print("|--|--|--|--|--|--|--|--|--|", flush=True)
    results = []
    for fault in faults.FAULTS:
        if options.only and not any(word.lower() in fault.name.lower() for word in options.only.split(",")):
            continue
        if fault in (faults.CATALOGUE_FULL, faults.CATALOGUE_LOCKED) and options.database_url:
            continue
        if fault is faults.CATALOGUE_FULL and not has_small_disk:
            print(f"| {fault.name} | not run: no small file system can be mounted here |")
            continue
        queries = prepared(rows, options.deadline)
        make_ready(cluster, fault)
        enduring = faults.endure(cluster, fault, queries, rate=options.rate, deadline_s=options.deadline)
        results.append(asyncio.run(enduring))
        print(row(results[-1]), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--deadline", type=float, default=2.0)
    parser.add_argument("--only", help="words of the faults to run, separated by commas")
    parser.add_argument("--database-url", help="another catalogue than SQLite")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        cluster = Cluster(
            Path(folder), controllers=2, workers=WORKERS, database_url=options.database_url, settings=SETTINGS
        )
        with faults.small_disk(cluster.catalogue) as has_small_disk, cluster.running():
            cluster.register(MODEL)
            results = table(cluster, options, has_small_disk)
    if options.json:
        options.json.write_text(json.dumps([as_json(result) for result in results], indent=2))


if __name__ == "__main__":
    main()
