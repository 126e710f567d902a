"""Which variant should do the work of another one on this worker: `plan_exchange(held, wanted, known, room, …)`.

After INFaaS's model autoscaler (Romero et al., USENIX ATC 2021, §4.2), which weighs replicating a variant against
moving its queries to another one, by what each would cost. Cost is what of the worker nobody else can have: the larger
of the share of its cores and the share of its memory that a variant takes to carry its load (the dominant share of
Ghodsi et al., NSDI 2011). At a few queries a second that is memory, so that small variants win; at many it is time, so
that those win which do much in a run.

An exchange never leaves a gap: the other variant is READY before the first one goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from infaas.domain.action import Action, Cause
from infaas.domain.ids import VariantName
from infaas.domain.variant import Hardware, Variant

BUSY_SHARE = 0.75
"""Of the time, that instances should run at most."""
GAIN = 0.75
"""What an exchange must come down to, of what it costs before: less than that is not worth a load, and what is seen
wavers. Two variants are never exchanged for each other in turn at one load, for that would cost ever less."""
BATCH_SHARE = 0.5
"""Of a query's time, that the run may take which it is in: another may just have begun (Proteus, Jellyfish+)."""
NEEDED_FOR_S = 60.0
"""What was loaded in spite of having been given up is neither source nor target for so long."""


class Held(msgspec.Struct, frozen=True):
    """A variant that has instances here."""

    variant: Variant
    ready: int
    loading: int
    items_per_s: float
    """That it does, on average lately."""
    is_busy: bool
    """Its instances are short of room."""


class Wanted(msgspec.Struct, frozen=True):
    """What is known of the queries that a variant serves."""

    admitted: frozenset[VariantName]
    """Others that every one of them admits."""
    latency_s: float
    items_per_query: float = 1.0


class Room(msgspec.Struct, frozen=True):
    cores: int
    """All of them; an exchange is for longer than they are lent for."""
    is_lent: bool
    """Whether somebody has borrowed some, or asks for them."""
    memory_bytes: int
    """All that instances may take."""
    free_bytes: int
    max_replicas: int


class Takeover(msgspec.Struct, frozen=True):
    """`target` is loaded already where `is_there`."""

    source: VariantName
    target: VariantName
    action: Action
    cause: Cause
    reason: str
    is_there: bool


class Patience(msgspec.Struct, frozen=True):
    """For how long an exchange must have been worth it."""

    busy_s: float
    """Where the source is short of room."""
    else_s: float


class ExchangeMemory(msgspec.Struct, frozen=True):
    worth_since: Mapping[tuple[VariantName, VariantName], float] = MappingProxyType({})
    """Since when an exchange has been worth it."""
    under_way: Takeover | None = None
    given_up: Mapping[VariantName, VariantName] = MappingProxyType({})
    """What is not to be loaded here, and what does its work."""
    needed_at: Mapping[VariantName, float] = MappingProxyType({})
    """When something that was given up was loaded all the same, because somebody needed it."""


class Exchanged(msgspec.Struct, frozen=True):
    begun: Takeover | None
    """Load its target, if that is not there; its source stays."""
    ended: Takeover | None
    """Unload every instance of its source."""
    memory: ExchangeMemory


def plan_exchange(
    held: Sequence[Held],
    wanted: Mapping[VariantName, Wanted],
    known: Mapping[VariantName, Variant],
    failed: frozenset[VariantName],
    room: Room,
    patience: Patience,
    memory: ExchangeMemory,
    now: float,
) -> Exchanged:
    """`known`: variants that could be loaded. `failed`: those of which an instance failed lately.

    Promises: one exchange at a time; the target is admitted by all that the source serves, is fast enough for the
    tightest of it, and carries the load of both with the instances that are READY, or the one that is loaded for it;
    it is loaded into free memory only; the source goes when the target is READY, and never otherwise.
    """
    there = {one.variant.name: one for one in held}
    memory = _remembered(there, memory, now)
    if memory.under_way is not None:
        return _follow(memory.under_way, there, wanted, memory)
    may_begin = not room.is_lent and not any(one.loading for one in held)
    worth = _worth(there, wanted, known, failed | memory.needed_at.keys(), room) if may_begin else {}
    since = {pair: memory.worth_since.get(pair, now) for pair in worth}
    due = [
        (one.share, one.takeover)
        for pair, one in worth.items()
        if now - since[pair] >= (patience.busy_s if there[pair[0]].is_busy else patience.else_s)
    ]
    if not due:
        return Exchanged(None, None, replace(memory, worth_since=since))
    _, best = min(due, key=lambda one: (one[0], one[1].source, one[1].target))
    if best.is_there:
        return Exchanged(best, best, _given_up(best, memory))
    return Exchanged(best, None, replace(memory, worth_since={}, under_way=best))


def _remembered(there: Mapping[VariantName, Held], memory: ExchangeMemory, now: float) -> ExchangeMemory:
    """What was given up counts while that which does its work is READY. What came back in spite of it stays for a
    while, or it might come and go with every other query."""
    called_for = None if memory.under_way is None else memory.under_way.target
    back = {name: now for name in memory.given_up if name in there and name != called_for}
    needed = {name: at for name, at in memory.needed_at.items() if now - at < NEEDED_FOR_S}
    given_up = {
        name: by for name, by in memory.given_up.items() if name not in there and by in there and there[by].ready
    }
    return replace(memory, given_up=given_up, needed_at={**needed, **back})


def _given_up(ended: Takeover, memory: ExchangeMemory) -> ExchangeMemory:
    """What had its work done by the source has it done by the target now."""
    moved = {name: ended.target if by == ended.source else by for name, by in memory.given_up.items()}
    moved.pop(ended.target, None)
    return replace(memory, worth_since={}, under_way=None, given_up={**moved, ended.source: ended.target})


def _follow(
    begun: Takeover, there: Mapping[VariantName, Held], wanted: Mapping[VariantName, Wanted], memory: ExchangeMemory
) -> Exchanged:
    """Until its target is READY, or is not going to be. Other queries may have come meanwhile."""
    target, asked = there.get(begun.target), wanted.get(begun.source)
    if begun.source not in there or target is None or asked is None:
        return Exchanged(None, None, replace(memory, under_way=None))
    if not target.ready:
        return Exchanged(None, None, memory)
    if begun.target not in asked.admitted or _largest_batch(target.variant, asked) is None:
        return Exchanged(None, None, replace(memory, under_way=None))
    return Exchanged(None, begun, _given_up(begun, memory))


class _Worth(msgspec.Struct, frozen=True):
    share: float
    """What it costs afterwards, of what it costs before."""
    takeover: Takeover


def _worth(
    there: Mapping[VariantName, Held],
    wanted: Mapping[VariantName, Wanted],
    known: Mapping[VariantName, Variant],
    barred: frozenset[VariantName],
    room: Room,
) -> dict[tuple[VariantName, VariantName], _Worth]:
    """Every pair of source and target that would be worth it now. `barred` are neither."""
    found: dict[tuple[VariantName, VariantName], _Worth] = {}
    for source, one in there.items():
        asked = wanted.get(source)
        if asked is None or not one.ready or source in barred:
            continue
        for name in sorted(asked.admitted - barred - {source}):
            other = there.get(name)
            variant = known.get(name) if other is None else other.variant
            if variant is None or (other is not None and not other.ready):
                continue
            if other is None and variant.memory_bytes > room.free_bytes:
                continue
            worth = _exchange(one, asked, variant, other, wanted.get(name), room)
            if worth is not None:
                found[source, name] = worth
    return found


def _exchange(
    source: Held, asked: Wanted, target: Variant, other: Held | None, others: Wanted | None, room: Room
) -> _Worth | None:
    """`other`: what the target does here already, and `others` who asks for that."""
    if target.hardware is not Hardware.CPU or target.runtime.is_elsewhere:
        return None
    # That it serves is seen, however tight the time is.
    before = cost(source.variant, source.items_per_s, replace(asked, latency_s=math.inf), room)
    if before is None and not source.is_busy:
        return None
    together = asked if others is None else _together(asked, others)
    own = 0.0 if other is None else other.items_per_s
    total = source.items_per_s + own
    after = cost(target, total, together, room)
    if after is None or instances_for(target, total, together) > (1 if other is None else other.ready):
        return None
    beside = 0.0 if other is None else cost(target, own, others or asked, room) or 0.0
    if before is not None and after > GAIN * (before + beside):
        return None
    share = after / (before + beside) if before else 0.0
    does_more = _most_per_s(target) > _most_per_s(source.variant)
    action = Action.UPGRADE if does_more else Action.DOWNGRADE
    cause = Cause.BUSY if source.is_busy else Cause.CHEAPER
    load = f"{source.items_per_s:.3g} items/s"
    costs = "cannot carry" if before is None else f"takes {before + beside:.1%} of the worker for"
    reason = f"{source.variant.name} {costs} {load}, {target.name} would take {after:.1%}"
    return _Worth(share, Takeover(source.variant.name, target.name, action, cause, reason, other is not None))


def _together(one: Wanted, other: Wanted) -> Wanted:
    return Wanted(
        one.admitted & other.admitted,
        min(one.latency_s, other.latency_s),
        max(one.items_per_query, other.items_per_query),
    )


def cost(variant: Variant, items_per_s: float, asked: Wanted, room: Room) -> float | None:
    """Share of the worker that a variant takes to carry a load; None when it cannot carry it here. How many instances
    there are now is left out: who is replicated late, or given up late, would look dear or cheap for it."""
    instances = instances_for(variant, items_per_s, asked)
    if instances > room.max_replicas or instances * variant.threads > room.cores:
        return None
    # An instance that is idle never waits for a larger batch, so what it saves by batching shows only in what it can
    # carry: until it is busy all the time, every query costs what it costs alone.
    least = _least_batch(variant, asked)
    busy_cores = min(instances, items_per_s * variant.run_s(least, "mean_s") / least) * variant.threads
    return max(busy_cores / room.cores, instances * variant.memory_bytes / room.memory_bytes)


def instances_for(variant: Variant, items_per_s: float, asked: Wanted) -> float:
    """How many carry a load; infinite where no batch is fast enough."""
    most = _largest_batch(variant, asked)
    if most is None:
        return math.inf
    return max(1, math.ceil(items_per_s * variant.run_s(most, "mean_s") / most / BUSY_SHARE))


def _least_batch(variant: Variant, asked: Wanted) -> int:
    """What one query brings."""
    return variant.fixed_batch or min(variant.max_batch_size, max(1, math.ceil(asked.items_per_query)))


def _largest_batch(variant: Variant, asked: Wanted) -> int | None:
    """The one that does most in a second, of those that are fast enough. None: none is."""
    least = _least_batch(variant, asked)
    sizes = [least]
    while variant.fixed_batch is None and 2 * sizes[-1] <= variant.max_batch_size:
        sizes.append(2 * sizes[-1])
    able = [size for size in sizes if variant.run_s(size, "p95_s") <= BATCH_SHARE * asked.latency_s]
    return max(able, key=lambda size: (size / variant.run_s(size, "mean_s"), -size), default=None)


def _most_per_s(variant: Variant) -> float:
    return 0.0 if variant.profile is None else variant.profile.throughput_per_s
