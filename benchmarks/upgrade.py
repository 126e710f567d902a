"""The rolling upgrade: every part of a cluster under load is replaced by one of another version, up and down.

python benchmarks/upgrade.py [--load 0.6] [--rows 4] [--deadline 2.0]

Two controllers, three workers and a generator of the version before (`infaas.testing.previous`), each a process, with a
Redis of their own; every variant that serves is on all workers. The load is `--load` of what one controller and all
workers but one answer in a closed loop, for one worker is always away. Workers are drained, stopped and started with
this code, one after the other, then the generator, then the controllers; then the same way back. Callers ask both
controllers in turn, and try once more on the other one while controllers are replaced, never else. Starting a program
takes a second or two of a core, which must be there besides. Exit status 1 where a query failed, 2 without the
repository's history.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from faults import MODEL, SETTINGS, WORKERS, capacity, prepared

from infaas.testing.cluster import Cluster
from infaas.testing.previous import PREVIOUS, NoHistoryError, unpack_previous
from infaas.testing.upgrade import Passage, roll


def row(passage: Passage) -> str:
    outcome = passage.outcome
    failed = ", ".join(f"{count} {code}" for code, count in sorted(outcome.failed.items())) or "0"
    return (
        f"| {passage.what} | {passage.took_s:.0f} s | {len(outcome.shots)} | {failed} | {outcome.retried} | "
        f"{outcome.hung} | {outcome.percentile_s(0.5) * 1e3:.0f} ms | {outcome.percentile_s(0.99) * 1e3:.0f} ms |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--rows", type=int, default=4, help="of a query")
    parser.add_argument("--deadline", type=float, default=2.0)
    options = parser.parse_args(arguments)
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="infaas-") as code, tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        try:
            previous = unpack_previous(Path(code))
        except NoHistoryError as error:
            print(error)
            return 2
        cluster = Cluster(Path(folder), controllers=2, workers=WORKERS, settings=SETTINGS)
        cluster.sources = dict.fromkeys(cluster.names, previous)
        with cluster.running():
            cluster.register(MODEL)
            found = asyncio.run(capacity(cluster, options.rows))
            cluster.wait_spread(list(cluster.places()), WORKERS)
            cluster.kill(cluster.workers[-1])
            cluster.wait_spread(list(cluster.places()), WORKERS - 1)
            found = min(found, asyncio.run(capacity(cluster, options.rows)))
            cluster.start(cluster.workers[-1])
            cluster.wait_whole()
            cluster.wait_spread(list(cluster.places()), WORKERS)
            rate = options.load * found
            print(
                f"from {PREVIOUS[:7]} and back; {rate:.0f} queries/s of {options.rows} rows each = {options.load:.0%} "
                f"of the {found:.0f}/s that one controller and {WORKERS - 1} of {WORKERS} workers do; deadline "
                f"{options.deadline:g} s"
            )
            print("| replaced | took | queries | failed | retried | hung | p50 | p99 |\n|--|--|--|--|--|--|--|--|")
            queries = prepared(options.rows, options.deadline)
            for direction, source in (("up", None), ("down", previous)):
                for passage in roll(cluster, source, direction, queries, rate=rate, deadline_s=options.deadline):
                    print(row(passage), flush=True)
                    broken += passage.broken()
    print("\n".join(f"broken: {what}" for what in broken) or "no query failed")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
