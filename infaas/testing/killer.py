"""A killer that wounds a cluster under load at random, heals it, and looks whether anything is left of it.

What it does is planned from a seed: wounds overlap, but no part has two at once, and one controller is always left. At
the end everything is healed; then the store, every controller's view and the workers' own reports must come to say the
same, gauges what is live, and nothing may be half done (`Leftovers`). `benchmarks/killer.py` prints the table,
`tests/fault/cluster` holds its promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infaas.testing import faults
from infaas.testing.cluster import Cluster
from infaas.testing.kept_fleet import running_with_fleet
from infaas.testing.leftovers import wait_until_nothing_is_left
from infaas.testing.load import HUNG_AFTER_S, Load, Outcome
from infaas.testing.upgrade import LoadUntilTold, remembered
from infaas.up.crew import Crew, MemberState

FLEET = "fleet"
"""The target of what befalls one worker of the fleet, whichever there is."""
REDIS = "redis"
GENERATOR = "generator"
_LONGEST_S = {
    "killed": 6.0,
    "stopped": 12.0,
    "cut off": 12.0,
    "emptied": 4.0,
    "flushed": 0.5,
    "slow": 8.0,
    "read-only": 8.0,
}
"""How long each kind of wound may stay open."""
PATIENCE_S = 90.0
"""For all to be at rest after the last wound has healed."""


@dataclass(frozen=True, slots=True)
class Wound:
    at_s: float
    lasts_s: float
    kind: str
    target: str

    @property
    def heals_s(self) -> float:
        return self.at_s + self.lasts_s


def plan_wounds(
    seed: int, seconds: float, controllers: Sequence[str], workers: Sequence[str], *, every_s: float
) -> list[Wound]:
    """In order; all have healed by `seconds`. One comes each `every_s` on average, if what it hits is whole then."""
    draw = random.Random(seed)
    kinds = {
        **dict.fromkeys((*controllers, GENERATOR, FLEET), ("killed", "stopped")),
        **dict.fromkeys(workers, ("killed", "stopped", "cut off")),
        REDIS: ("killed", "stopped", "emptied", "flushed", "slow", "read-only"),
    }
    found: list[Wound] = []
    at = draw.expovariate(1 / every_s)
    while at < seconds:
        target = draw.choice(sorted(kinds))
        kind = draw.choice(kinds[target])
        wound = Wound(at, draw.uniform(0.5, 1.0) * _LONGEST_S[kind], kind, target)
        open_now = {one.target for one in found if one.heals_s > at}
        is_last_controller = target in controllers and open_now & set(controllers)
        if target not in open_now and not is_last_controller and wound.heals_s < seconds:
            found.append(wound)
        at += draw.expovariate(1 / every_s)
    return found


class Killer:
    """Performs a plan on a running cluster; every wound is healed when `run` returns or raises."""

    def __init__(self, cluster: Cluster, fleet: Path, seed: int) -> None:
        """`fleet`: the folder of the provider `local`."""
        self._cluster = cluster
        self._crew = Crew(fleet)
        self._draw = random.Random(seed)
        self.suffered: list[tuple[Wound, float, float]] = []
        """With when it really began and was healed, in seconds since the beginning."""

    def run(self, wounds: Sequence[Wound], began: float) -> None:
        """`began`: on the monotonic clock."""
        moments = sorted([(one.at_s, 1, one) for one in wounds] + [(one.heals_s, 0, one) for one in wounds], key=_when)
        healing: dict[Wound, tuple[ExitStack, float]] = {}
        with ExitStack() as whatever_happens:
            for at_s, is_beginning, wound in moments:
                time.sleep(max(0.0, began + at_s - time.monotonic()))
                if is_beginning:
                    if self._is_last_controller(wound.target):
                        continue
                    stack = whatever_happens.enter_context(ExitStack())
                    healing[wound] = (stack, time.monotonic() - began)
                    stack.enter_context(self._inflicted(wound))
                elif wound in healing:
                    stack, since = healing.pop(wound)
                    stack.close()
                    self.suffered.append((wound, since, time.monotonic() - began))

    def _is_last_controller(self, target: str) -> bool:
        """Whether no other one serves: one that was healed may be long in coming back on a busy machine."""
        if target not in self._cluster.controllers:
            return False
        others = [number for number, name in enumerate(self._cluster.controllers) if name != target]
        return not any((found := self._cluster.system(number)) is not None and found.is_ready for number in others)

    def _inflicted(self, wound: Wound) -> AbstractContextManager[None]:
        cluster, target = self._cluster, wound.target
        if target == FLEET:
            return self._fleet_worker(wound.kind)
        if target == REDIS:
            return {
                "killed": faults.redis_killed,
                "stopped": faults.redis_stalled,
                "emptied": lambda cluster: faults.redis_killed(cluster, is_emptied=True),
                "flushed": faults.redis_flushed,
                "slow": faults.redis_slow,
                "read-only": faults.redis_read_only,
            }[wound.kind](cluster)
        if wound.kind == "cut off":
            return _cut_off(cluster, target)
        return {"killed": faults.killed, "stopped": faults.stopped}[wound.kind](cluster, target)

    @contextmanager
    def _fleet_worker(self, kind: str) -> Iterator[None]:
        """One that is killed is left to the fleet to replace."""
        running = [one.pid for one in self._crew.members() if one.state is MemberState.RUNNING and one.pid is not None]
        if not running:
            yield
            return
        pid = self._draw.choice(running)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
        try:
            yield
        finally:
            if kind == "stopped":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def _when(moment: tuple[float, int, Wound]) -> tuple[float, int]:
    return moment[:2]


@contextmanager
def _cut_off(cluster: Cluster, worker: str) -> Iterator[None]:
    """No controller reaches it, nor it any of them; the store does."""
    link = cluster.worker_links[worker]
    link.cut()
    try:
        yield
    finally:
        link.mend()


@contextmanager
def cluster_with_fleet(folder: Path) -> Iterator[Cluster]:
    """Two controllers, two workers behind links, a generator, a fleet of one worker more at least, and autoscalers that
    act soon. Whatever happens, none of the fleet is left."""
    settings = {
        "INFAAS_CONTROLLER__MIN_REPLICAS": "2",
        "INFAAS_FLEET__PROVIDER": "local",
        "INFAAS_FLEET__PERIOD_S": "0.5",
        "INFAAS_FLEET__UPSCALE_DELAY_S": "1",
        "INFAAS_FLEET__DOWNSCALE_DELAY_S": "5",
        "INFAAS_FLEET__FOLDER": str(folder / "fleet"),
        "INFAAS_WORKER__AUTOSCALING__DOWNSCALE_DELAY_S": "3",
        "INFAAS_WORKER__DRAIN_TIMEOUT_S": "10",
        "INFAAS_POOLS": "{local: {workers: 0, min_workers: 3, max_workers: 5, cores: 1, memory_bytes: 500000000}}",
    }
    cluster = Cluster(folder, controllers=2, workers=2, settings=settings, fleet_workers=1, has_worker_links=True)
    with running_with_fleet(cluster, folder / "fleet"):
        yield cluster


@dataclass(frozen=True, slots=True)
class Hunt:
    """What was done, and what the callers saw."""

    suffered: tuple[tuple[Wound, float, float], ...]
    outcome: Outcome
    at_rest_after_s: float
    """From when the last query had ended."""

    @property
    def hung(self) -> int:
        """Callers who had nothing a second after their deadline, or that of their second try, while no controller stood
        still: one that does answers nobody."""
        still = [(a, b) for wound, a, b in self.suffered if wound.kind == "stopped" and "controller" in wound.target]
        return sum(
            shot.took_s > shot.attempts * self.outcome.deadline_s + HUNG_AFTER_S
            and not any(a < shot.ended_s and shot.due_s < b + HUNG_AFTER_S for a, b in still)
            for shot in self.outcome.shots
        )


def hunt(
    cluster: Cluster,
    wounds: Sequence[Wound],
    queries: Sequence[bytes],
    *,
    rate: float,
    deadline_s: float,
    seed: int,
) -> Hunt:
    """Callers try once more on the other controller. Raises TimeoutError when something is left at the end."""
    fleet = cluster.folder / "fleet"
    killer = Killer(cluster, fleet, seed)
    load = Load(remembered(cluster), queries, deadline_s=deadline_s, is_spread=True, has_retry=True)
    shooting = LoadUntilTold(load, rate, seed)
    try:
        killer.run(wounds, time.monotonic())
    finally:
        outcome = shooting.end()
    ended = time.monotonic()
    wait_until_nothing_is_left(cluster, fleet, PATIENCE_S)
    return Hunt(tuple(killer.suffered), outcome, time.monotonic() - ended)


def answers(cluster: Cluster, queries: Sequence[bytes]) -> Outcome:
    """Of both controllers in turn, to callers who never try twice."""
    return asyncio.run(Load(cluster.urls, queries, deadline_s=30.0, is_spread=True).closed_loop(2, 2.0))
