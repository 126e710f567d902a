"""Making room for one more instance: which idle ones leave, or why none can.

The worth of keeping an instance is what it would cost to lose it: items it answered lately times the seconds of
loading it again, per byte it holds. The least worthy leave first, and no more of them than needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infaas.domain.ids import InstanceId

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Resident:
    id: InstanceId
    memory_bytes: int
    is_leaving: bool
    """On its way out already: its memory can be waited for."""
    is_evictable: bool
    """Ready, idle, and not loaded just now for a query that has yet to arrive."""
    recent_items: float
    reload_s: float

    @property
    def worth(self) -> tuple[float, float]:
        """Without recent use, what is quickest to load again per byte leaves first."""
        per_byte = max(self.reload_s, 1e-6) / max(self.memory_bytes, 1)
        return self.recent_items * per_byte, per_byte


@dataclass(frozen=True, slots=True)
class Room:
    """`evict` must be drained; all of `wait_for` must be out before loading begins."""

    evict: tuple[InstanceId, ...] = ()
    wait_for: tuple[InstanceId, ...] = ()


@dataclass(frozen=True, slots=True)
class NoRoom:
    reason: str


def make_room(need_bytes: int, budget_bytes: int, residents: Sequence[Resident]) -> Room | NoRoom:
    """How `need_bytes` fit beside what stays."""
    if need_bytes > budget_bytes:
        return NoRoom(f"needs {_mib(need_bytes)}, more than this worker's whole budget of {_mib(budget_bytes)}")
    free = budget_bytes - sum(one.memory_bytes for one in residents)
    if free >= need_bytes:
        return Room()
    leaving = [one for one in residents if one.is_leaving]
    leaving_bytes = sum(one.memory_bytes for one in leaving)
    wait_for = tuple(one.id for one in leaving)
    missing = need_bytes - free - leaving_bytes
    if missing <= 0:
        return Room(wait_for=wait_for)
    candidates = sorted((one for one in residents if one.is_evictable and not one.is_leaving), key=_worth)
    evictable_bytes = sum(one.memory_bytes for one in candidates)
    if evictable_bytes < missing:
        stay = len(residents) - len(leaving) - len(candidates)
        return NoRoom(
            f"needs {_mib(need_bytes)}; of {_mib(budget_bytes)} are {_mib(max(free, 0))} free, "
            f"{_mib(leaving_bytes)} being freed and {_mib(evictable_bytes)} held by idle instances that could leave; "
            f"{stay} instances are loading, busy or only just loaded"
        )
    chosen = _fewest(candidates, missing)
    return Room(evict=chosen, wait_for=wait_for + chosen)


def _fewest(candidates: Sequence[Resident], missing: int) -> tuple[InstanceId, ...]:
    """The least worthy prefix that frees enough, without those that the rest can spare."""
    taken: list[Resident] = []
    freed = 0
    for one in candidates:
        if freed >= missing:
            break
        taken.append(one)
        freed += one.memory_bytes
    for one in reversed(taken[:-1]):
        if freed - one.memory_bytes >= missing:
            taken.remove(one)
            freed -= one.memory_bytes
    return tuple(one.id for one in taken)


def _worth(one: Resident) -> tuple[float, float]:
    return one.worth


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
