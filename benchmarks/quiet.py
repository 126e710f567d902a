"""Zero traffic: nobody asks anything for minutes, then one query comes.

python benchmarks/quiet.py [--seconds 300] [--unload-after 60] [--model digits-cnn-large] [--tries 3]

Two controllers and a fleet of the provider `local`, once with a floor of one worker and once with none. After the quiet
the metrics of both controllers and `infaas autoscaler status` in all its forms must hold a number wherever one is due,
the floor must stand, and the model must have been unloaded. Then the first query is answered within what its worker
says that loading took and 100 ms, or refused with the reason; in the second case the fleet must bring a worker for
whoever asks again. Exit status 1 where that is not so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from infaas.client import QueryError
from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.quiet import ask_once, cluster_that_scales, fleet_size, no_numbers, replicas

BEYOND_LOAD_S = 0.1


def with_floor(cluster: Cluster, options: argparse.Namespace) -> Iterator[str]:
    """What is broken."""
    for number in range(options.tries):
        quiet_s = options.seconds if not number else 0.0
        time.sleep(quiet_s)
        wait_for(lambda: replicas(cluster) == 0, "what nobody asks for to be unloaded", options.unload_after + 60)
        yield from no_numbers(cluster)
        if (size := fleet_size(cluster)) != 1:
            yield f"{size} workers, and 1 is the floor"
        answer = ask_once(cluster, options.model, number % 2)
        beyond_s = answer.took_s - answer.load_s
        print(
            f"| 1 | {quiet_s or options.unload_after:.0f} s | answered, {'cold' if answer.was_cold else 'warm'} | "
            f"{answer.took_s * 1e3:.0f} ms | {answer.load_s * 1e3:.0f} ms | {beyond_s * 1e3:+.0f} ms |",
            flush=True,
        )
        if beyond_s > BEYOND_LOAD_S:
            yield f"answered {beyond_s * 1e3:.0f} ms after its load"


def without_floor(cluster: Cluster, options: argparse.Namespace) -> Iterator[str]:
    """What is broken."""
    time.sleep(options.seconds)
    if size := fleet_size(cluster):
        yield f"{size} workers, and none is wanted"
    yield from no_numbers(cluster)
    began = time.monotonic()
    try:
        ask_once(cluster, options.model)
        yield "answered without any worker"
    except QueryError as error:
        said = f"{error.code.value}: {error.text}"
        took_s = time.monotonic() - began
        print(f"| 0 | {options.seconds:.0f} s | refused, {said} | {took_s * 1e3:.0f} ms | | |", flush=True)
    wait_for(lambda: cluster.connected() == 1, "a worker for whoever asks again")
    came_s = time.monotonic() - began
    answer = ask_once(cluster, options.model)
    print(
        f"| 0 | {came_s:.1f} s later | answered | {answer.took_s * 1e3:.0f} ms | {answer.load_s * 1e3:.0f} ms | "
        f"{(answer.took_s - answer.load_s) * 1e3:+.0f} ms |",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--unload-after", type=float, default=60.0)
    parser.add_argument("--model", default="digits-cnn-large")
    parser.add_argument("--tries", type=int, default=3, help="first queries with a floor; the later ones wait less")
    options = parser.parse_args(arguments)
    broken: list[str] = []
    print("| floor | quiet for | the first query | took | its load | beyond |\n|--|--|--|--|--|--|", flush=True)
    for min_workers, look in ((1, with_floor), (0, without_floor)):
        with (
            tempfile.TemporaryDirectory(prefix="infaas-", ignore_cleanup_errors=True) as folder,
            cluster_that_scales(
                Path(folder), min_workers=min_workers, unload_after_s=options.unload_after, shrink_after_s=30.0
            ) as cluster,
        ):
            cluster.register(options.model)
            broken += look(cluster, options)
    print("\n".join(f"broken: {what}" for what in broken) or "all as promised")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
