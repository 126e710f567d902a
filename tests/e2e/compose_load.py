"""Load on a compose cluster through its one published address, while one of its containers suffers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from container_engine import Cluster

from infaas.testing.load import Load, Outcome, arrivals, query_bytes

TASK = "integers"
DEADLINE_S = 2.0
SHARE = 0.3
"""Of what the whole cluster answers. Containers, callers and all share the machine: a program that starts again takes a
core for seconds, so that more than this would be an overload, which is another test's."""
MOST_PER_S = 300.0
CALLERS = 16
CALIBRATION_S = 3.0
PAUSE_S = 0.1
"""Before a second try: a killed process closes its listeners last, and takes connections that it will never serve."""
LEAD_S, TAIL_S = 3.0, 3.0
PREPARED = 4_000


@dataclass(frozen=True, slots=True)
class Suffered:
    outcome: Outcome
    began_s: float
    """When, in the load, it began."""
    rate: float

    def __str__(self) -> str:
        outcome = self.outcome
        return (
            f"{len(outcome.shots)} queries at {self.rate:.0f}/s, failed {dict(outcome.failed)}, retried "
            f"{outcome.retried}, hung {outcome.hung}, p99 {outcome.percentile_s(0.99) * 1e3:.0f} ms, the slowest "
            f"{outcome.worst_beyond_deadline_s():+.2f} s from its deadline, the last failure due "
            f"{(outcome.last_failure_s() or self.began_s) - self.began_s:.2f} s after it began"
        )


def capacity(cluster: Cluster) -> float:
    """Queries per second that callers get answered who ask one after the other."""

    async def measure() -> float:
        load = _load(cluster, has_retry=False)
        await load.closed_loop(CALLERS, CALIBRATION_S / 3)  # instances get loaded
        outcome = await load.closed_loop(CALLERS, CALIBRATION_S)
        assert not outcome.failed
        return len(outcome.shots) / max(shot.ended_s for shot in outcome.shots)

    return asyncio.run(measure())


def suffer(
    cluster: Cluster, rate: float, harm: Callable[[], None], *, lasts_s: float, has_retry: bool = False
) -> Suffered:
    """Queries leave on schedule while `harm` runs; the schedule goes on for `lasts_s` after it began, and some more."""

    async def run() -> Suffered:
        schedule = arrivals(rate, LEAD_S + lasts_s + TAIL_S, seed=1)
        shooting = asyncio.create_task(_load(cluster, has_retry=has_retry).run(schedule), name="load")
        await asyncio.sleep(LEAD_S)
        await asyncio.to_thread(harm)
        return Suffered(await shooting, LEAD_S, rate)

    return asyncio.run(run())


def _load(cluster: Cluster, *, has_retry: bool) -> Load:
    # The same place under two names has connections of its own for each. So the second try is made over a new
    # connection, and not over one that was idle meanwhile and is as dead as the first.
    urls = [cluster.url, f"{cluster.url}/"]
    return Load(lambda: urls, _prepared(cluster.token), deadline_s=DEADLINE_S, has_retry=has_retry, pause_s=PAUSE_S)


def _prepared(token: str) -> list[bytes]:
    """Hardly any is sent twice, for an input that was running when something died is suspected for a while."""
    draw = np.random.default_rng(1)
    headers = {"authorization": f"Bearer {token}", "x-infaas-slo-latency-ms": f"{DEADLINE_S * 1e3:g}"}
    shape = (1, 16)
    return [
        query_bytes(
            TASK, {name: draw.integers(0, 2**30, shape).astype(np.int32) for name in ("INPUT0", "INPUT1")}, headers
        )
        for _ in range(PREPARED)
    ]
