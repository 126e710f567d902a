"""Which staged work starts next, given the cores that running work leaves.

Earliest deadline first, with an ageing term: nothing is passed over by newer work for longer than `PATIENCE_S`,
however late its own deadline is. Work that needs more cores than are free holds the next ones for itself; narrower
work may still start in front of it if it is expected to be over before those cores are, or does not need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from infaas.domain.ids import InstanceId

PATIENCE_S = 1.0


class Waiting(msgspec.Struct, frozen=True):
    key: int
    instance: InstanceId
    threads: int
    arrived_at: float
    deadline: float
    expected_s: float | None = None
    """How long it should run; None: unknown, so it never goes in front of wider work."""

    @property
    def urgency(self) -> tuple[float, int]:
        """Lowest goes first; equal ones in the order they came."""
        return min(self.deadline, self.arrived_at + PATIENCE_S), self.key


class Running(msgspec.Struct, frozen=True):
    threads: int
    ends_at: float
    """When it is expected to be over."""


def choose(
    waiting: Iterable[Waiting], running: Sequence[Running], room: dict[InstanceId, int], cores: int, now: float
) -> tuple[int, ...]:
    """Keys to start now, in order. `room` says how many more runs an instance's executor takes (absent: none).

    Promises that threads of what runs and what starts never exceed `cores` (SURFACE rule 14).
    """
    free = cores - sum(run.threads for run in running)
    left = dict(room)
    busy = list(running)
    starts: list[int] = []
    reserved: tuple[float, int] | None = None
    for work in sorted(waiting, key=_urgency):
        if left.get(work.instance, 0) <= 0:
            continue
        if work.threads > free:
            if reserved is None:
                reserved = _reservation(work.threads, free, busy, now)
            continue
        if reserved is not None:
            opens_at, spare = reserved
            is_over_in_time = work.expected_s is not None and now + work.expected_s <= opens_at
            if not is_over_in_time and work.threads > spare:
                continue
            if not is_over_in_time:
                reserved = (opens_at, spare - work.threads)
        starts.append(work.key)
        left[work.instance] -= 1
        free -= work.threads
        busy.append(Running(work.threads, now + (work.expected_s or 0.0)))
    return tuple(starts)


def _reservation(threads: int, free: int, running: Sequence[Running], now: float) -> tuple[float, int]:
    """When enough cores are expected to be free, and how many are then left over."""
    for run in sorted(running, key=_end):
        free += run.threads
        if free >= threads:
            return max(run.ends_at, now), free - threads
    return now, 0


def _urgency(work: Waiting) -> tuple[float, int]:
    return work.urgency


def _end(run: Running) -> float:
    return run.ends_at
