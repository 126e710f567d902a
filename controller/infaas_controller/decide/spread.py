"""Which variants to load on which other workers, because those that have them are busy all the time.

A worker's model autoscaler loads a busy variant again beside itself; where its cores do not suffice for that, another
worker's may. Selection alone would not ask for it: a query that can be served somewhere loads nothing elsewhere, and a
worker that has just come would stay empty while queues grow. INFaaS sends the overflow to workers where the variant
runs already (Romero et al., USENIX ATC 2021, section 4.2) and leaves it open how it gets there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import msgspec

from infaas.domain.ids import VariantName, WorkerId

BUSY = 0.75
"""Share of the time that a variant's instances run, on average, from which on it is busy: the workers' own rule."""
BUSY_BESIDE_EMPTY = 0.6
"""The same where a worker has nothing loaded: it costs as much as any other, and a fleet that keeps its workers below
`BUSY` has ordered it for this."""
HELD_S = 3.0
"""For how long; its workers, which act after one second, come first."""
IDLE_SHARE = 0.5
"""Of the cores that an instance wants, so many must be idle at a place."""


class Copy(msgspec.Struct, frozen=True):
    """A READY instance."""

    variant: VariantName
    worker: WorkerId
    busy: float
    """Share of the time that it has run lately."""


class Place(msgspec.Struct, frozen=True):
    """A worker that takes queries."""

    worker: WorkerId
    cores: int
    busy_cores: float
    free_bytes: int
    """That no instance has set aside."""
    is_loading: bool = False
    is_empty: bool = False
    """It has no instance at all."""


class Need(msgspec.Struct, frozen=True):
    """What an instance of a variant takes."""

    threads: int
    memory_bytes: int


class Spread(msgspec.Struct, frozen=True):
    variant: VariantName
    worker: WorkerId
    reason: str


class SpreadMemory(msgspec.Struct, frozen=True):
    busy_since: Mapping[VariantName, float] = MappingProxyType({})
    nearly_busy_since: Mapping[VariantName, float] = MappingProxyType({})
    """From `BUSY_BESIDE_EMPTY` on."""


def plan_spread(
    copies: Sequence[Copy],
    places: Sequence[Place],
    needs: Mapping[VariantName, Need],
    loading: Collection[VariantName],
    banned: Collection[tuple[VariantName, WorkerId]],
    memory: SpreadMemory,
    now: float,
) -> tuple[list[Spread], SpreadMemory]:
    """What to load where. `needs`: of the variants that may be loaded at all. `loading`: those that are on their way
    somewhere or have just come; how busy the others are then is to be seen. `banned`: loads that failed lately.

    Promises: no worker gets a variant that it has, or more than one at a time, or one that its memory or its idle cores
    do not suffice for; nothing that is not busy is loaded, or nearly so where a worker stands empty.
    """
    by_variant: dict[VariantName, list[Copy]] = {}
    for copy in copies:
        by_variant.setdefault(copy.variant, []).append(copy)
    busy_since: dict[VariantName, float] = {}
    nearly_busy_since: dict[VariantName, float] = {}
    found: list[Spread] = []
    taken: set[WorkerId] = {place.worker for place in places if place.is_loading}
    for name in sorted(by_variant):
        own = by_variant[name]
        share = sum([copy.busy for copy in own]) / len(own)
        if share < BUSY_BESIDE_EMPTY or name not in needs or name in loading:
            continue
        nearly_busy_since[name] = memory.nearly_busy_since.get(name, now)
        if share >= BUSY:
            busy_since[name] = memory.busy_since.get(name, now)
        is_due = now - busy_since.get(name, now) >= HELD_S
        is_nearly_due = now - nearly_busy_since[name] >= HELD_S
        there = {copy.worker for copy in own}
        fitting = [
            place
            for place in places
            if (is_due or (is_nearly_due and place.is_empty))
            and place.worker not in there
            and place.worker not in taken
            and (name, place.worker) not in banned
            and _fits(needs[name], place)
        ]
        if fitting:
            best = min(fitting, key=lambda place: (place.busy_cores - place.cores, place.worker))
            taken.add(best.worker)
            found.append(Spread(name, best.worker, _reason(share, own, best)))
            busy_since.pop(name, None)
            del nearly_busy_since[name]
    return found, SpreadMemory(busy_since, nearly_busy_since)


def _fits(need: Need, place: Place) -> bool:
    return (
        need.threads <= place.cores
        and place.cores - place.busy_cores >= IDLE_SHARE * need.threads
        and need.memory_bytes <= place.free_bytes
    )


def _reason(share: float, own: Sequence[Copy], best: Place) -> str:
    return (
        f"{_instances(len(own))} {share:.0%} of the time on average; {best.busy_cores:.1f} of {best.cores} cores "
        "are in use here"
    )


def _instances(count: int) -> str:
    return "its instance runs" if count == 1 else f"its {count} instances run"
