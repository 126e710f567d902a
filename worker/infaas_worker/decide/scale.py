"""How many instances of which variants a worker holds: `plan_instances(replicas, resources, limits, memory, now)`.

After INFaaS's model autoscaler (Romero et al., USENIX ATC 2021, §4.2), which holds load against saturation throughput
each second, replicates below a headroom of 1.05, and scales down once the load has been low for about as long as a load
takes. Load is taken here as the time that instances run, which holds for every batch size and needs no profile: an
instance that runs three quarters of the time is short of room, for a query that comes then waits one and a half runs on
average (M/D/1), and hand-overs take of the rest. Whether another variant should do the work is `exchange`'s question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from infaas.domain.action import Action, Cause, VariantUse
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.variant import Variant
from infaas_worker.decide.exchange import (
    BUSY_SHARE,
    Exchanged,
    ExchangeMemory,
    Held,
    Patience,
    Room,
    Takeover,
    Wanted,
    plan_exchange,
)

QUIET_SHARE = 0.5
"""An instance is given up if the others would then run less than this; far enough below the above for a load that
wavers, or the next look would bring it back."""
HALF_LIFE_S = 1.0
"""How long it takes for what was seen before to count half."""
PAYS_FROM = 0.5
"""Of the cores that an instance wants, so many must be idle: with fewer, two share what one has."""
FAILED_FOR_S = 30.0
"""After an instance has failed, no other of its variant is added for so long."""

LEASE_PATIENCE_S = 2.0
"""How long somebody waits to borrow cores that nobody wants, before a variant gives up an instance for him."""
LENT_FOR_S = 30.0
"""After that, no other is added for so long: who measures borrows again and again."""


class Replica(msgspec.Struct, frozen=True):
    """An instance that is READY or LOADING."""

    id: InstanceId
    variant: VariantName
    threads: int
    memory_bytes: int
    is_ready: bool
    is_idle: bool
    busy_s: float
    """That it has run since it was loaded, with what runs now."""
    used_at: float
    """When it answered last; when it came to be READY, if it has not yet."""
    load_s: float
    can_replicate: bool = True
    """False where a server of its own runs it, as many at once as that likes, or where its size is not known."""
    items: int = 0
    """That it has done since it was loaded."""


class Resources(msgspec.Struct, frozen=True):
    cores: int
    """Of the worker, but for those that are leased or asked for."""
    asked_for_s: float
    """How long somebody has waited to lease some of them; 0: nobody."""
    free_bytes: int
    idle_cores: float
    """That nobody used lately, programs beside this worker included."""


class Limits(msgspec.Struct, frozen=True):
    """`downscale_to_zero_delay_s` None: the last instance of a variant is never given up for want of use."""

    max_replicas: int = 8
    upscale_delay_s: float = 1.0
    downscale_delay_s: float = 30.0
    downscale_to_zero_delay_s: float | None = None


class Asked(msgspec.Struct, frozen=True):
    """What an exchange of variants takes to be decided on."""

    variants: Mapping[VariantName, Variant]
    """Those that are here, and those that could be."""
    wanted: Mapping[VariantName, Wanted]
    cores: int
    """Of the worker, those too that are leased."""
    memory_bytes: int
    """All that instances may take."""


class Memory(msgspec.Struct, frozen=True):
    """What a look leaves to the next."""

    at: float | None = None
    busy_s: Mapping[InstanceId, float] = MappingProxyType({})
    busy: Mapping[VariantName, float] = MappingProxyType({})
    """Instances that run, on average, smoothed."""
    busy_since: Mapping[VariantName, float] = MappingProxyType({})
    quiet_since: Mapping[VariantName, float] = MappingProxyType({})
    not_before: Mapping[VariantName, tuple[float, Cause]] = MappingProxyType({})
    """Until when no other is added, and because of what."""
    held: frozenset[VariantName] = frozenset()
    """Of which it was said that no more are loaded, and why."""
    items: Mapping[InstanceId, int] = MappingProxyType({})
    items_per_s: Mapping[VariantName, float] = MappingProxyType({})
    """Smoothed."""
    exchange: ExchangeMemory = ExchangeMemory()


class Step(msgspec.Struct, frozen=True):
    """`instance` is the one to unload, or the one to load another of; `target` the variant to load one of, unless it is
    there."""

    action: Action
    cause: Cause
    variant: VariantName
    reason: str
    replicas: int
    instance: InstanceId | None = None
    target: VariantName | None = None


class Plan(msgspec.Struct, frozen=True):
    steps: tuple[Step, ...]
    memory: Memory
    uses: tuple[VariantUse, ...]


class _Group(msgspec.Struct, frozen=True):
    """A variant's instances here."""

    variant: VariantName
    ready: tuple[Replica, ...]
    loading: tuple[Replica, ...]
    busy: float
    items_per_s: float

    @property
    def count(self) -> int:
        return len(self.ready) + len(self.loading)

    @property
    def like(self) -> Replica:
        """What another would be."""
        return (self.ready or self.loading)[0]

    @property
    def share(self) -> float:
        return self.busy / len(self.ready) if self.ready else 0.0

    @property
    def share_of_fewer(self) -> float:
        """What each would run if there were one less."""
        return self.busy / (len(self.ready) - 1)


def plan_instances(
    replicas: Sequence[Replica],
    failed: Mapping[VariantName, float],
    resources: Resources,
    limits: Limits,
    memory: Memory,
    now: float,
    asked: Asked | None = None,
) -> Plan:
    """What to load and unload now. `failed`: when an instance of a variant failed last, as far as that is still known.
    `asked` None: no variant is exchanged for another.

    Promises: no more than `max_replicas` of a variant, nor more than the cores can run at once; only memory that is
    free is taken; one is loaded at a time, and none beside another load, which would have to wait for it; nothing grows
    that nobody uses; the last instance goes for want of use, or when another variant has taken over what it did.
    """
    groups = _groups(replicas, memory, now)
    after = _remembered(replicas, failed, groups, memory, now)
    steps: list[Step] = []
    held = frozenset([one.variant for one in groups if one.variant in memory.held and one.share >= QUIET_SHARE])
    if memory.at is not None:
        exchanged = _exchanged(groups, resources, limits, after, now, asked)
        after = replace(after, exchange=exchanged.memory)
        steps += _exchange_steps(groups, exchanged)
        taken_over = _taken_over(exchanged)
        rest = [one for one in groups if one.variant not in taken_over]
        grown = [] if taken_over else _growth(rest, resources, limits, after, now)
        steps += [step for step in grown if step.action is not Action.HOLD or step.variant not in held]
        held |= {step.variant for step in grown if step.action is Action.HOLD}
        steps += _shrinking(rest, resources, limits, after, now)
    changed = {step.variant for step in steps if step.action is not Action.HOLD}
    lent = {step.variant: (now + LENT_FOR_S, Cause.LENT) for step in steps if _is_loan(step)}
    after = replace(
        after,
        not_before={**after.not_before, **lent},
        held=held - changed,
        quiet_since={name: at for name, at in after.quiet_since.items() if name not in changed},
    )
    uses = tuple([VariantUse(one.variant, len(one.ready), len(one.loading), one.busy) for one in groups])
    return Plan(tuple(steps), after, uses)


def _exchanged(
    groups: Sequence[_Group], resources: Resources, limits: Limits, memory: Memory, now: float, asked: Asked | None
) -> Exchanged:
    if asked is None:
        return Exchanged(None, None, ExchangeMemory())
    held = [
        Held(
            variant=asked.variants[one.variant],
            ready=len(one.ready),
            loading=len(one.loading),
            items_per_s=one.items_per_s,
            is_busy=one.variant in memory.busy_since,
        )
        for one in groups
        if one.variant in asked.variants and one.like.can_replicate
    ]
    is_lent = resources.cores < asked.cores
    room = Room(asked.cores, is_lent, asked.memory_bytes, resources.free_bytes, limits.max_replicas)
    failed = frozenset([name for name, (_, cause) in memory.not_before.items() if cause is Cause.FAILED])
    patience = Patience(limits.upscale_delay_s, limits.downscale_delay_s)
    return plan_exchange(held, asked.wanted, asked.variants, failed, room, patience, memory.exchange, now)


def _taken_over(exchanged: Exchanged) -> frozenset[VariantName]:
    """Whose instances are left as they are, since another variant is about to do their work, or does it now."""
    moves = (exchanged.begun, exchanged.ended, exchanged.memory.under_way)
    return frozenset([move.source for move in moves if move is not None])


def _exchange_steps(groups: Sequence[_Group], exchanged: Exchanged) -> list[Step]:
    by_name = {one.variant: one for one in groups}
    steps: list[Step] = []
    if (begun := exchanged.begun) is not None:
        target = None if begun.is_there else begun.target
        count = by_name[begun.source].count
        steps.append(Step(begun.action, begun.cause, begun.source, begun.reason, count, None, target))
    if (ended := exchanged.ended) is not None:
        one = by_name[ended.source]
        steps += [_replaced(ended, one.count, replica) for replica in (*one.ready, *one.loading)]
    return steps


def _replaced(ended: Takeover, count: int, replica: Replica) -> Step:
    text = f"{ended.target} does its work"
    return Step(Action.UNLOAD, Cause.REPLACED, ended.source, text, count, replica.id)


def _is_loan(step: Step) -> bool:
    return step.action is Action.UNLOAD and step.cause is Cause.LENT


def _groups(replicas: Sequence[Replica], memory: Memory, now: float) -> list[_Group]:
    """By name."""
    elapsed_s = now - memory.at if memory.at is not None else 0.0
    weight = 1.0 - math.pow(0.5, elapsed_s / HALF_LIFE_S)
    ran: dict[VariantName, float] = {}
    did: dict[VariantName, float] = {}
    for one in replicas:
        if elapsed_s > 0:
            new_s = one.busy_s - memory.busy_s.get(one.id, 0.0)
            ran[one.variant] = ran.get(one.variant, 0.0) + min(1.0, max(0.0, new_s) / elapsed_s)
            new = max(0, one.items - memory.items.get(one.id, 0))
            did[one.variant] = did.get(one.variant, 0.0) + new / elapsed_s
    found: list[_Group] = []
    for name in sorted({one.variant for one in replicas}):
        own = [one for one in replicas if one.variant == name]
        lately = memory.busy.get(name, 0.0)
        busy = lately + weight * (ran[name] - lately) if name in ran else lately
        before = memory.items_per_s.get(name, 0.0)
        rate = before + weight * (did[name] - before) if name in did else before
        ready = tuple([one for one in own if one.is_ready])
        found.append(_Group(name, ready, tuple([one for one in own if not one.is_ready]), busy, rate))
    return found


def _remembered(
    replicas: Sequence[Replica],
    failed: Mapping[VariantName, float],
    groups: Sequence[_Group],
    memory: Memory,
    now: float,
) -> Memory:
    busy = {one.variant for one in groups if one.ready and one.share >= BUSY_SHARE}
    quiet = {one.variant for one in groups if len(one.ready) > 1 and one.share_of_fewer < QUIET_SHARE}
    not_before = {**memory.not_before, **{name: (at + FAILED_FOR_S, Cause.FAILED) for name, at in failed.items()}}
    return Memory(
        at=now,
        busy_s={one.id: one.busy_s for one in replicas},
        busy={one.variant: one.busy for one in groups},
        busy_since={name: memory.busy_since.get(name, now) for name in busy},
        quiet_since={name: memory.quiet_since.get(name, now) for name in quiet},
        not_before={name: (until, cause) for name, (until, cause) in not_before.items() if until > now},
        items={one.id: one.items for one in replicas},
        items_per_s={one.variant: one.items_per_s for one in groups},
        exchange=memory.exchange,
    )


def _growth(groups: Sequence[_Group], resources: Resources, limits: Limits, memory: Memory, now: float) -> list[Step]:
    """The most pressed variant that can have one more gets it; also who is held back, and by what."""
    if any(one.loading for one in groups):
        return []
    steps: list[Step] = []
    running = sum([one.busy * one.like.threads for one in groups])
    idle = min(resources.cores - running, resources.idle_cores)
    for one in sorted(groups, key=lambda each: (-each.share, each.variant)):
        since = memory.busy_since.get(one.variant)
        if since is None or now - since < limits.upscale_delay_s or not one.like.can_replicate:
            continue
        text = f"{one.busy:.2f} of {one.count} run on average"
        cause = _held_by(one, idle, resources, limits, memory)
        if cause is None:
            why = f"{text}, which is {BUSY_SHARE:.0%} of the time or more"
            steps.append(Step(Action.REPLICATE, Cause.BUSY, one.variant, why, one.count, one.like.id))
            break
        steps.append(Step(Action.HOLD, cause, one.variant, f"{text}; {_against(cause)}", one.count))
    return steps


def _held_by(one: _Group, idle: float, resources: Resources, limits: Limits, memory: Memory) -> Cause | None:
    """What stands against another instance."""
    like = one.like
    if one.variant in memory.not_before:
        return memory.not_before[one.variant][1]
    if one.count >= limits.max_replicas:
        return Cause.AT_MOST
    if (one.count + 1) * like.threads > resources.cores or idle < PAYS_FROM * like.threads:
        return Cause.NO_CORES
    return Cause.NO_MEMORY if like.memory_bytes > resources.free_bytes else None


def _against(cause: Cause) -> str:
    return {
        Cause.NO_CORES: "no core is idle for another",
        Cause.NO_MEMORY: "another has no room in the memory that is free",
        Cause.AT_MOST: "worker.autoscaling.max_replicas allows no more",
        Cause.LENT: f"cores were asked for by somebody else less than {LENT_FOR_S:g} s ago",
        Cause.FAILED: f"an instance of it has failed, so that another waits {FAILED_FOR_S:g} s",
    }[cause]


def _lender(groups: Sequence[_Group], resources: Resources) -> _Group | None:
    """Of the variants that have several instances, the one that would miss one least. A variant's only instance goes
    on, as it did before there were others: what is borrowed is what is left."""
    if resources.asked_for_s < LEASE_PATIENCE_S or any(one.loading for one in groups):
        return None
    several = [one for one in groups if len(one.ready) > 1]
    return min(several, key=lambda one: (one.share_of_fewer, one.variant), default=None)


def _shrinking(
    groups: Sequence[_Group], resources: Resources, limits: Limits, memory: Memory, now: float
) -> list[Step]:
    """One instance of a variant at a time."""
    steps: list[Step] = []
    lender = _lender(groups, resources)
    for one in groups:
        if one.loading or not one.ready:
            continue
        victim = min(one.ready, key=lambda each: (not each.is_idle, each.used_at, each.id))
        since = memory.quiet_since.get(one.variant)
        patience_s = max(limits.downscale_delay_s, one.like.load_s)
        if one is lender:
            text = f"cores are asked for by somebody else, who has waited for {resources.asked_for_s:.0f} s"
            steps.append(Step(Action.UNLOAD, Cause.LENT, one.variant, text, one.count, victim.id))
        elif since is not None and now - since >= patience_s:
            text = f"{one.busy:.2f} of {one.count} run on average; one less has been enough for {now - since:.0f} s"
            steps.append(Step(Action.UNLOAD, Cause.QUIET, one.variant, text, one.count, victim.id))
        elif len(one.ready) == 1 and limits.downscale_to_zero_delay_s is not None:
            last = one.ready[0]
            unused_s = now - last.used_at
            if last.is_idle and unused_s >= limits.downscale_to_zero_delay_s:
                text = f"nobody has asked for it for {unused_s:.0f} s"
                steps.append(Step(Action.UNLOAD, Cause.UNUSED, one.variant, text, 1, last.id))
    return steps
