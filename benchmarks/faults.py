"""The fault table: what is lost under load, how many queries fail by it, how late the latest answer is, how soon all is
whole again.

python benchmarks/faults.py [--rate 200] [--load 0.6] [--deadline 2.0] [--only WORD,WORD] [--database-url URL]

Two controllers, three workers and a generator, each a process, with a Redis of their own; every variant that serves is
on all workers (`controller.min_replicas`). A query is made as large as it must be for `--rate` of them to be `--load`
of what one controller and all workers but one can do on this machine, callers included. Queries leave on a Poisson
schedule and hardly any is sent twice, for an input that was running when something died is suspected for a while.
Callers never retry, but where a controller is killed: there once, on the other one.

An answer or error later than a second after its deadline counts as hung. Below the table stands every promise that was
broken (`Result.broken`): a query that failed where none may, a caller who hung, a part whose loss no controller told.
Exit status 1 when there is one, 2 when nothing could be run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
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
    # One such instance says nothing: a query whose worker died is tried again in a process of its own.
    if isolation is not None and cluster.published_isolation(cluster.places()) != {isolation}:
        cluster.isolate(MODEL, isolation)
    if not any(cluster.places(isolation).values()):
        asyncio.run(capacity(cluster, 1))
    cluster.wait_spread(list(cluster.places()), WORKERS, isolation)


def most_rows(cluster: Cluster) -> int:
    """That every variant of the model takes in one batch."""
    with cluster.client() as client:
        return min(
            one.max_batch_size for one in client.variants(model=MODEL) if one.is_current and one.state == "READY"
        )


async def sized(cluster: Cluster, rate: float, share: float) -> tuple[int, float]:
    """Rows per query, and the capacity for such queries. Never more than the variants take: on a machine that is
    fast for that rate, the load is then less than was asked for."""
    wanted = rate / share
    rows, found = 1, await capacity(cluster, 1)
    if found < wanted:
        raise SystemExit(f"this machine does {found:.0f} queries/s; {rate:.0f}/s would be {rate / found:.0%} load")
    too_many = most_rows(cluster) + 1
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
        "p99_s": outcome.percentile_s(0.99) if len(outcome.shots) > outcome.failed.total() else None,
        "worst_beyond_deadline_s": outcome.worst_beyond_deadline_s(),
        "served_after_s": result.served_after_s,
        "whole_after_s": result.whole_after_s,
        "broken": result.broken(),
    }


def chosen(only: str | None) -> list[faults.Fault]:
    """Those with one of the words in their names. Raises SystemExit for a word that none has."""
    words = [word.strip().lower() for word in (only or "").split(",") if word.strip()]
    for word in words:
        if not any(word in fault.name.lower() for fault in faults.FAULTS):
            known = "; ".join(fault.name for fault in faults.FAULTS)
            raise SystemExit(f"no fault has {word!r} in its name; there are {known}")
    return [fault for fault in faults.FAULTS if not words or any(word in fault.name.lower() for word in words)]


def not_run(fault: faults.Fault, database_url: str | None, has_small_disk: bool) -> str | None:
    """Why it cannot be done here."""
    if fault in (faults.CATALOGUE_FULL, faults.CATALOGUE_LOCKED) and database_url:
        return "it is about an SQLite catalogue"
    if fault is faults.CATALOGUE_FULL and not has_small_disk:
        return "no small file system can be mounted here"
    return None


def table(
    cluster: Cluster, options: argparse.Namespace, wanted: Sequence[faults.Fault], has_small_disk: bool
) -> Iterator[faults.Result]:
    rows, found = asyncio.run(capacity_of_the_rest(cluster, options.rate, options.load))
    print(
        f"{options.rate:.0f} queries/s of {rows} rows each = {options.rate / found:.0%} of the {found:.0f}/s "
        f"that one controller and {WORKERS - 1} of {WORKERS} workers do; deadline {options.deadline:g} s"
    )
    print("| lost | queries | failed | retried | hung | p99 | slowest beyond deadline | failures ended | whole again |")
    print("|--|--|--|--|--|--|--|--|--|", flush=True)
    for fault in wanted:
        if why := not_run(fault, options.database_url, has_small_disk):
            print(f"| {fault.name} | not run: {why} |", flush=True)
            continue
        queries = prepared(rows, options.deadline)
        make_ready(cluster, fault)
        enduring = faults.endure(cluster, fault, queries, rate=options.rate, deadline_s=options.deadline)
        result = asyncio.run(enduring)
        print(row(result), flush=True)
        yield result


def verdict(results: Sequence[faults.Result]) -> tuple[str, int]:
    """What stands below the table, and the exit status."""
    if not results:
        return "nothing was run", 2
    broken = [f"broken: {result.fault.name}: {what}" for result in results for what in result.broken()]
    return ("\n".join(broken), 1) if broken else (f"{len(results)} faults borne as promised", 0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--deadline", type=float, default=2.0)
    parser.add_argument("--only", help="words of the faults to run, separated by commas")
    parser.add_argument("--database-url", help="another catalogue than SQLite")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args(arguments)
    wanted = chosen(options.only)
    results: list[faults.Result] = []
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        cluster = Cluster(
            Path(folder), controllers=2, workers=WORKERS, database_url=options.database_url, settings=SETTINGS
        )
        with faults.small_disk(cluster.catalogue) as has_small_disk, cluster.running():
            cluster.register(MODEL)
            for result in table(cluster, options, wanted, has_small_disk):
                results.append(result)
                if options.json:  # each time: one that the cluster does not survive leaves those before it
                    options.json.write_text(json.dumps([as_json(one) for one in results], indent=2) + "\n")
    said, status = verdict(results)
    print(said)
    return status


if __name__ == "__main__":
    sys.exit(main())
