"""The life of one instance: `step(instance, event, now) -> (instance, commands)`.

States and arrows are those of `infaas.domain.lifecycle`. An instance is LOADING until a real inference has succeeded,
takes batches while READY, finishes what it holds while DRAINING, and when FAILED says why for a while before it is
gone. Work is known by a key only; what it holds lives elsewhere.
"""

from __future__ import annotations

import math
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import Death, InstanceState, is_allowed
from infaas.domain.query import Code
from infaas.domain.variant import Isolation

FAILED_KEPT_S = 5.0
"""How long a failed instance stays in reports, so that every controller reads the reason."""
DEATH_KEPT_S = 30.0
"""The same for one that died: whoever leads the controllers must see it, also one that has yet to take over."""
USE_HALF_LIFE_S = 60.0
"""Measured use is items done, halved every this many seconds."""


class WorkKind(StrEnum):
    BATCH = "batch"
    WARM_UP = "warm-up"
    PROBE = "probe"


class Instance(msgspec.Struct, frozen=True):
    """A struct, as everything that changes with each batch: replacing a field costs a tiny part of a dataclass's."""

    id: InstanceId
    variant: VariantName
    threads: int
    memory_bytes: int
    asked_at: float
    state: InstanceState = InstanceState.LOADING
    reason: str = ""
    in_flight: int = 1
    """Runs the executor takes at once."""
    is_resident: bool = False
    """Whether the executor holds it."""
    is_unloading: bool = False
    running: tuple[int, ...] = ()
    staged: tuple[int, ...] = ()
    loading_since: float | None = None
    """When the executor began to load it, if this process waits for that with a thread that nothing can end."""
    load_excused_s: float = 0.0
    """Since then, what this process was paused for."""
    loaded_at: float | None = None
    last_ok_at: float | None = None
    failed_at: float | None = None
    load_s: float = 0.0
    was_cold: bool = False
    items_done: int = 0
    busy_s: float = 0.0
    use: float = 0.0
    used_at: float = 0.0
    isolation: Isolation = Isolation.THREAD
    is_killable: bool = False
    """Whether what runs in it can be ended from outside."""
    death: Death | None = None

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.staged

    @property
    def holds_memory(self) -> bool:
        return self.is_resident or self.state not in (InstanceState.FAILED, InstanceState.GONE)

    @property
    def slots(self) -> int:
        """Batches one controller may have here: those that run and one staged."""
        return self.in_flight + 1

    def recent_use(self, now: float) -> float:
        """Items done lately: each counts half after `USE_HALF_LIFE_S`."""
        return self.use * math.pow(0.5, (now - self.used_at) / USE_HALF_LIFE_S)


class LoadBegan(msgspec.Struct, frozen=True):
    """In this process, by a thread that nothing can end."""


class Loaded(msgspec.Struct, frozen=True):
    """The executor holds the variant; it has yet to prove itself."""

    load_s: float
    was_cold: bool
    in_flight: int
    memory_bytes: int
    is_killable: bool = False


class LoadFailed(msgspec.Struct, frozen=True):
    reason: str


class WorkArrived(msgspec.Struct, frozen=True):
    key: int
    kind: WorkKind = WorkKind.BATCH


class WorkStarted(msgspec.Struct, frozen=True):
    key: int


class WorkWithdrawn(msgspec.Struct, frozen=True):
    """Staged work that will not run: cancelled, expired, or its controller is gone."""

    key: int


class WorkDone(msgspec.Struct, frozen=True):
    key: int
    kind: WorkKind
    items: int
    run_s: float
    error: str = ""
    """Of the whole run; a warm-up or probe that has one fails the instance, a batch does not."""


class DrainAsked(msgspec.Struct, frozen=True):
    reason: str


class ProbeDue(msgspec.Struct, frozen=True):
    pass


class ExecutorDied(msgspec.Struct, frozen=True):
    reason: str
    death: Death | None = None


class Unloaded(msgspec.Struct, frozen=True):
    pass


class TimePassed(msgspec.Struct, frozen=True):
    pass


InstanceEvent = (
    LoadBegan
    | Loaded
    | LoadFailed
    | WorkArrived
    | WorkStarted
    | WorkWithdrawn
    | WorkDone
    | DrainAsked
    | ProbeDue
    | ExecutorDied
    | Unloaded
    | TimePassed
)


class Stage(msgspec.Struct, frozen=True):
    """Make a warm-up or a probe and offer it as work."""

    kind: WorkKind


class Refuse(msgspec.Struct, frozen=True):
    """Work that arrived or was held and will not run (or will not be heard of again)."""

    key: int
    code: Code
    text: str
    was_running: bool


class Unload(msgspec.Struct, frozen=True):
    """Take it out of the executor; answered by `Unloaded`."""


InstanceCommand = Stage | Refuse | Unload
Step = tuple[Instance, tuple[InstanceCommand, ...]]


def step(instance: Instance, event: InstanceEvent, now: float) -> Step:
    """What an event makes of an instance, and what to do about it."""
    match event:
        case WorkArrived(key, kind):
            return _arrive(instance, key, kind)
        case WorkStarted(key):
            staged = tuple([k for k in instance.staged if k != key])
            return replace(instance, staged=staged, running=(*instance.running, key)), ()
        case WorkDone():
            return _done(instance, event, now)
        case WorkWithdrawn(key):
            return _drained(replace(instance, staged=tuple(k for k in instance.staged if k != key)))
        case LoadBegan():
            return replace(instance, loading_since=now), ()
        case Loaded():
            return _loaded(instance, event, now)
        case LoadFailed(reason):
            failed, commands = _fail(instance, reason, now)
            return replace(failed, is_resident=False, is_unloading=False, loading_since=None), tuple(
                command for command in commands if not isinstance(command, Unload)
            )
        case DrainAsked(reason):
            return _drain(instance, reason)
        case ProbeDue():
            is_due = instance.state is InstanceState.READY and instance.is_idle
            return instance, (Stage(WorkKind.PROBE),) if is_due else ()
        case ExecutorDied(reason, death):
            return _fail(instance, reason, now, death)
        case Unloaded():
            gone = replace(instance, is_resident=False, is_unloading=False)
            return (_move(gone, InstanceState.GONE) if gone.state is InstanceState.DRAINING else gone), ()
        case TimePassed():
            return _forget(instance, now), ()


def _arrive(instance: Instance, key: int, kind: WorkKind) -> Step:
    if kind is not WorkKind.BATCH or instance.state is InstanceState.READY:
        return replace(instance, staged=(*instance.staged, key)), ()
    if instance.state is InstanceState.LOADING:
        return instance, (Refuse(key, Code.LOADING, f"instance {instance.id} is still loading", False),)
    if instance.state is InstanceState.DRAINING:
        return instance, (Refuse(key, Code.DRAINING, f"instance {instance.id} is draining", False),)
    text = f"instance {instance.id} is {instance.state.value}: {instance.reason}"
    return instance, (Refuse(key, Code.UNAVAILABLE, text, False),)


def _loaded(instance: Instance, event: Loaded, now: float) -> Step:
    loaded = replace(
        instance,
        load_s=event.load_s,
        was_cold=event.was_cold,
        in_flight=event.in_flight,
        memory_bytes=event.memory_bytes,
        loading_since=None,
        loaded_at=now,
        is_resident=True,
        is_killable=event.is_killable,
    )
    if loaded.state is InstanceState.LOADING:
        return loaded, (Stage(WorkKind.WARM_UP),)
    return _drained(loaded)


def _done(instance: Instance, event: WorkDone, now: float) -> Step:
    if event.key not in instance.running:
        return instance, ()
    running = tuple([key for key in instance.running if key != event.key])
    if event.kind is WorkKind.BATCH:
        return _drained(ran(instance, event, running, now))
    after = replace(instance, running=running)
    if event.error:
        return _fail(after, f"{event.kind.value} failed: {event.error}", now)
    after = replace(after, last_ok_at=now)
    if after.state is InstanceState.LOADING:
        # Loading ends here: what a caller waits for is the first answer, and the warm-up is part of that.
        return replace(_move(after, InstanceState.READY), load_s=now - after.asked_at, loaded_at=now), ()
    return _drained(after)


def ran(instance: Instance, event: WorkDone, running: tuple[int, ...], now: float) -> Instance:
    """After a batch; `running` is what still runs."""
    busy_s = instance.busy_s + event.run_s
    if event.error:  # somebody asked for it all the same
        return replace(instance, running=running, busy_s=busy_s, use=instance.recent_use(now), used_at=now)
    return replace(
        instance,
        running=running,
        busy_s=busy_s,
        items_done=instance.items_done + event.items,
        use=instance.recent_use(now) + event.items,
        used_at=now,
        last_ok_at=now,
    )


def _drain(instance: Instance, reason: str) -> Step:
    if instance.state not in (InstanceState.LOADING, InstanceState.READY):
        return instance, ()
    return _drained(replace(_move(instance, InstanceState.DRAINING), reason=reason))


def _drained(instance: Instance) -> Step:
    """A draining instance leaves the executor as soon as it holds nothing and its load is over."""
    is_loaded = instance.loaded_at is not None
    if instance.state is not InstanceState.DRAINING or not instance.is_idle or not is_loaded or instance.is_unloading:
        return instance, ()
    return replace(instance, is_unloading=True), (Unload(),)


def _fail(instance: Instance, reason: str, now: float, death: Death | None = None) -> Step:
    """Everything it held is answered: what had begun to run is told apart from what had not (SURFACE rule 15)."""
    if instance.state in (InstanceState.FAILED, InstanceState.GONE):
        return instance, ()
    text = f"instance {instance.id} failed: {reason}"
    commands: list[InstanceCommand] = [Refuse(key, Code.UNAVAILABLE, text, True) for key in instance.running]
    commands += [Refuse(key, Code.UNAVAILABLE, text, False) for key in instance.staged]
    if not instance.is_unloading:
        commands.append(Unload())
    failed = _move(instance, InstanceState.FAILED)
    return (
        replace(failed, reason=reason, failed_at=now, running=(), staged=(), is_unloading=True, death=death),
        tuple(commands),
    )


def _forget(instance: Instance, now: float) -> Instance:
    kept_s = FAILED_KEPT_S if instance.death is None else DEATH_KEPT_S
    is_over = instance.failed_at is not None and now - instance.failed_at >= kept_s
    if instance.state is InstanceState.FAILED and is_over and not instance.is_resident:
        return _move(instance, InstanceState.GONE)
    return instance


def _move(instance: Instance, state: InstanceState) -> Instance:
    if not is_allowed(instance.state, state):
        raise ValueError(f"instance {instance.id} may not go from {instance.state} to {state}")
    return replace(instance, state=state)
