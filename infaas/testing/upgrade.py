"""A rolling upgrade of a cluster of real processes under load, up or down: part after part is replaced by one of
another version, and what the callers saw is told by their `Outcome`.

`benchmarks/upgrade.py` prints the table, `tests/fault/cluster` holds its promises.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.load import OK, Load, Outcome, arrivals

_LONGEST_S = 3600.0
_LEAD_S = 2.0
"""Of load before anything is touched, and after everything is whole again."""


class LoadUntilTold:
    """An open-loop load on a thread of its own, so that whoever touches the cluster may block."""

    def __init__(self, load: Load, rate: float, seed: int = 1) -> None:
        self._told = threading.Event()
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        schedule = itertools.takewhile(lambda _: not self._told.is_set(), arrivals(rate, _LONGEST_S, seed))

        def shoot() -> None:
            try:
                self._outcome = asyncio.run(load.run(schedule))
            except BaseException as error:  # told to whoever ends the load
                self._error = error

        self._thread = threading.Thread(target=shoot, name="load")
        self._thread.start()

    def end(self) -> Outcome:
        """What became of every query, once the last one has ended."""
        self._told.set()
        self._thread.join()
        if self._outcome is None:
            raise RuntimeError("the load broke down") from self._error
        return self._outcome


@contextmanager
def under_load(load: Load, rate: float, into: list[Outcome]) -> Iterator[None]:
    """A load around what is done meanwhile, with a lead before and after."""
    shooting = LoadUntilTold(load, rate)
    try:
        time.sleep(_LEAD_S)
        yield
        time.sleep(_LEAD_S)
    finally:
        into.append(shooting.end())


@dataclass(frozen=True, slots=True)
class Passage:
    """What one kind of part went through."""

    what: str
    outcome: Outcome
    took_s: float

    def broken(self) -> list[str]:
        """Every promise that was not kept, in words; empty: the passage was borne."""
        found = [f"{self.what}: {count} queries ended as {code}" for code, count in self.outcome.failed.items()]
        if self.outcome.hung:
            found.append(f"{self.what}: {self.outcome.hung} callers waited more than a second past their deadline")
        if not self.outcome.shots or self.outcome.shots[-1].code != OK:
            found.append(f"{self.what}: the last query was not answered")
        return found


def roll(
    cluster: Cluster,
    source: Path | None,
    direction: str,
    queries: Sequence[bytes],
    *,
    rate: float,
    deadline_s: float,
    order: Sequence[str] = ("workers", "generator", "controllers"),
) -> Iterator[Passage]:
    """Every part to the code at `source` (None: this code), one after the other, kind after kind in `order`. Callers of
    controllers that are replaced try once more on the other one; the others never do."""
    kinds = {"workers": cluster.workers, "generator": ["generator"], "controllers": cluster.controllers}
    for kind in order:
        has_retry = kind == "controllers"
        load = Load(remembered(cluster), queries, deadline_s=deadline_s, is_spread=True, has_retry=has_retry)
        outcomes: list[Outcome] = []
        began = time.monotonic()
        with under_load(load, rate, outcomes):
            for name in kinds[kind]:
                replace(cluster, name, source)
        yield Passage(f"{kind}, {direction}", outcomes[0], time.monotonic() - began)


def replace(cluster: Cluster, name: str, source: Path | None) -> None:
    """As an operator does it: workers are drained first; SIGTERM; then the same program of the other version. Returns
    once the cluster is whole and what was served by several workers is again."""
    places = {variant: workers for variant, workers in cluster.places().items() if workers}
    if name in cluster.workers:
        drain(cluster, f"local-{name.partition('-')[2]}")
    cluster.stop(name)
    if source is None:
        cluster.sources.pop(name, None)
    else:
        cluster.sources[name] = source
    cluster.start(name)
    cluster.wait_whole()
    for workers in {len(found) for found in places.values()}:
        cluster.wait_spread([variant for variant, found in places.items() if len(found) == workers], workers)


def drain(cluster: Cluster, worker: str) -> None:
    """Until it holds nothing."""
    with cluster.client() as client:
        client.drain_worker(worker)

        def is_idle() -> bool:
            (found,) = [one for one in client.workers() if one.id == worker]
            return found.state == "DRAINING" and not any(one.running + one.staged for one in found.instances)

        wait_for(is_idle, f"{worker} to have finished what it held")


def remembered(cluster: Cluster) -> Callable[[], list[str]]:
    """Where controllers are. One that is down keeps its place, as it does in a client's list."""
    known = cluster.urls()
    looked_at = time.monotonic()

    def urls() -> list[str]:
        nonlocal known, looked_at
        if time.monotonic() - looked_at > 0.5:
            looked_at = time.monotonic()
            now = cluster.urls()
            known = now if len(now) == len(known) else known
        return known

    return urls
