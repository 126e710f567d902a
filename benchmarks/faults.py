"""The fault table: what is lost under load, how many queries fail by it, how late the latest answer is, how soon all is
whole again.

python benchmarks/faults.py [--rate 200] [--load 0.6] [--deadline 1.0] [--only WORD,WORD] [--database-url URL]

Two controllers, three workers and a generator, each a process, with a Redis of their own. Queries leave on a Poisson
schedule; a query is made as large as it must be for `--rate` of them to be `--load` of what the cluster can do on this
machine, callers included. Callers never retry, but where a controller is killed: there once, on the other one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from own_system import images

from infaas.demo import family
from infaas.testing import faults
from infaas.testing.cluster import Cluster
from infaas.testing.load import Load, query_bytes

MODEL = "digits-cnn-large"
CALLERS = 24
CALIBRATION_S = 3.0
MOST_ROWS = 256
PREPARED = 50


def prepared(rows: int, deadline_s: float) -> list[bytes]:
    data = images()
    headers = {"x-infaas-slo-latency-ms": f"{deadline_s * 1e3:g}", "x-infaas-slo-accuracy-min": "0"}
    batches = [data[n % (len(data) - rows) :][:rows] for n in range(PREPARED)]
    return [query_bytes(MODEL, {family.INPUT: batch}, headers) for batch in batches]


async def capacity(cluster: Cluster, rows: int) -> float:
    """Queries per second that are answered to callers who ask one after the other."""
    load = Load(cluster.urls, prepared(rows, 30.0), deadline_s=30.0, is_spread=True)
    await load.closed_loop(CALLERS, CALIBRATION_S / 2)  # instances get loaded
    outcome = await load.closed_loop(CALLERS, CALIBRATION_S)
    if outcome.failed:
        raise SystemExit(f"the cluster does not answer: {outcome.failed}")
    return len(outcome.shots) / max(shot.ended_s for shot in outcome.shots)


async def sized(cluster: Cluster, rate: float, share: float) -> tuple[int, float]:
    """Rows per query, and the capacity for such queries."""
    wanted = rate / share
    rows, found = 1, await capacity(cluster, 1)
    if found < wanted:
        raise SystemExit(f"this machine does {found:.0f} queries/s; {rate:.0f}/s would be {rate / found:.0%} load")
    while rows < MOST_ROWS:
        more = max(rows + 1, int(rows * 1.5))
        at_more = await capacity(cluster, more)
        if at_more < wanted:
            break
        rows, found = more, at_more
    return rows, found


def row(result: faults.Result) -> str:
    outcome = result.outcome
    failed = ", ".join(f"{count} {code}" for code, count in sorted(outcome.failed.items())) or "0"
    beyond = outcome.worst_beyond_deadline_s()
    late = f"{beyond:+.2f} s"
    return (
        f"| {result.fault.name} | {len(outcome.shots)} | {failed} | {outcome.retried} | "
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
        "p99_s": outcome.percentile_s(0.99),
        "worst_beyond_deadline_s": outcome.worst_beyond_deadline_s(),
        "served_after_s": result.served_after_s,
        "whole_after_s": result.whole_after_s,
    }


async def table(cluster: Cluster, options: argparse.Namespace, has_small_disk: bool) -> list[faults.Result]:
    rows, found = await sized(cluster, options.rate, options.load)
    print(
        f"{options.rate:.0f} queries/s of {rows} rows each = {options.rate / found:.0%} of {found:.0f}/s; "
        f"deadline {options.deadline:g} s"
    )
    print("| lost | queries | failed | retried | p99 | slowest beyond its deadline | failures ended | whole again |")
    print("|--|--|--|--|--|--|--|--|")
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
        results.append(await faults.endure(cluster, fault, queries, rate=options.rate, deadline_s=options.deadline))
        print(row(results[-1]), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--deadline", type=float, default=1.0)
    parser.add_argument("--only", help="words of the faults to run, separated by commas")
    parser.add_argument("--database-url", help="another catalogue than SQLite")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        cluster = Cluster(Path(folder), controllers=2, workers=3, database_url=options.database_url)
        with faults.small_disk(cluster.catalogue) as has_small_disk, cluster.running():
            cluster.register(MODEL)
            results = asyncio.run(table(cluster, options, has_small_disk))
    if options.json:
        options.json.write_text(json.dumps([as_json(result) for result in results], indent=2))


if __name__ == "__main__":
    main()
