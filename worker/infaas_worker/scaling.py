"""The model autoscaler: has the rules (`decide.scale`) look once a second, and performs what they say.

Loads and unloads go the way of every other: off the serving threads, proved before they serve, drained before they go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from infaas.clock import Clock
from infaas.domain.action import Action, Autoscaling, ScalingStep, VariantUse
from infaas.domain.ids import InstanceId, VariantName, fresh_id
from infaas.domain.lifecycle import InstanceState
from infaas.domain.variant import Isolation, Variant
from infaas.observe.log import get_logger
from infaas_worker.decide.instances import Instance, WorkKind
from infaas_worker.decide.scale import Asked, Limits, Memory, Replica, Resources, Step, plan_instances
from infaas_worker.decide.serving import Serving, residents
from infaas_worker.heeding import Heeding
from infaas_worker.instances import Instances

STEPS_SAID = 20
"""The newest, with every report."""
_log = get_logger(__name__)


def replicas_of(serving: Serving, variants: Callable[[InstanceId], Variant | None], now: float) -> list[Replica]:
    """What the rules look at. One whose variant was given up meanwhile is on its way out. An instance in a process of
    its own beside one that has none was loaded for a suspect (SURFACE rule 15), and is no replica of the other."""
    running_s: dict[InstanceId, float] = {}
    for work in serving.work.values():
        if work.started_at is not None and work.kind is WorkKind.BATCH:  # a warm-up is nobody's load
            running_s[work.instance] = max(running_s.get(work.instance, 0.0), now - work.started_at)  # mates run once
    found: list[Replica] = []
    alive = [one for one in serving.instances.values() if one.state in (InstanceState.READY, InstanceState.LOADING)]
    in_threads = {one.variant for one in alive if one.isolation is Isolation.THREAD}
    for one in alive:
        if one.isolation is Isolation.PROCESS and one.variant in in_threads:
            continue
        variant = variants(one.id)
        if variant is not None:
            found.append(_replica(one, variant, running_s.get(one.id, 0.0)))
    return found


def _replica(one: Instance, variant: Variant, running_s: float) -> Replica:
    return Replica(
        id=one.id,
        variant=one.variant,
        threads=one.threads,
        memory_bytes=one.memory_bytes,
        is_ready=one.state is InstanceState.READY,
        is_idle=one.is_idle,
        busy_s=one.busy_s + running_s,
        used_at=max(one.asked_at, one.loaded_at or 0.0, one.used_at),
        load_s=one.load_s,
        can_replicate=variant.profile is not None and not variant.runtime.is_elsewhere,
        items=one.items_done,
    )


def failed_of(serving: Serving) -> dict[VariantName, float]:
    """When an instance of each variant failed last, of those that are still shown."""
    found: dict[VariantName, float] = {}
    for one in serving.instances.values():
        if one.state is InstanceState.FAILED and one.failed_at is not None:
            found[one.variant] = max(found.get(one.variant, 0.0), one.failed_at)
    return found


def resources_of(serving: Serving, idle_cores: float, now: float) -> Resources:
    leases = serving.leases.values()
    leased = sum([lease.cores for lease in leases])
    asked_for_s = max([now - lease.asked_at for lease in leases if not lease.core_ids], default=0.0)
    held_bytes = sum([one.memory_bytes for one in residents(serving.instances.values(), now)])
    return Resources(serving.cores - leased, asked_for_s, serving.memory_bytes - held_bytes, idle_cores)


class ModelAutoscaler:
    """Owned by the composition root, which calls `look` each period."""

    def __init__(
        self,
        instances: Instances,
        limits: Limits,
        clock: Clock,
        idle_cores: Callable[[], float],
        heeding: Heeding | None = None,
        *,
        is_on: bool,
    ) -> None:
        """`idle_cores`: of the machine, by its own measurement. `heeding` None: no variant is exchanged for another."""
        self._instances = instances
        self._limits = limits
        self._clock = clock
        self._idle_cores = idle_cores
        self._heeding = heeding if is_on else None
        self._is_on = is_on
        self._memory = Memory()
        self._steps: deque[ScalingStep] = deque(maxlen=STEPS_SAID)
        self._uses: tuple[VariantUse, ...] = ()

    def said(self) -> Autoscaling:
        given_up = tuple(sorted(self._memory.exchange.given_up))
        exchanges = self._heeding is not None
        return Autoscaling(self._is_on, self._uses, tuple(self._steps), given_up, exchanges)

    async def look(self) -> None:
        serving, now = self._instances.serving, self._clock.now()
        if serving.is_draining or serving.failure:
            self._memory, self._uses = Memory(), ()
            return
        variants, asked = self._instances.variants, self._asked(serving, now)
        plan = plan_instances(
            replicas_of(serving, variants.get, now),
            failed_of(serving),
            resources_of(serving, self._idle_cores(), now),
            self._limits,
            self._memory,
            now,
            asked,
        )
        self._memory, self._uses = plan.memory, plan.uses
        for step in plan.steps if self._is_on else ():
            self._perform(step, asked)

    def _asked(self, serving: Serving, now: float) -> Asked | None:
        if self._heeding is None:
            return None
        loaded = sorted(self._instances.variants.values(), key=lambda one: one.isolation is Isolation.THREAD)
        own = {variant.name: variant for variant in loaded}  # as it is meant to run, and not for a suspect
        self._heeding.forget_but(frozenset(own))
        variants = {**own, **self._heeding.variants(now)}
        return Asked(variants, self._heeding.wanted(now), serving.cores, serving.memory_bytes)

    def _perform(self, step: Step, asked: Asked | None) -> None:
        """Said before it is done."""
        target = asked.variants[step.target] if asked is not None and step.target is not None else None
        comes = step.action is Action.REPLICATE or target is not None
        instance = InstanceId(fresh_id("i")) if comes else step.instance
        self._steps.append(
            ScalingStep(
                id=fresh_id("s"),
                at=self._clock.wall(),
                action=step.action,
                cause=step.cause,
                variant=step.variant,
                reason=step.reason,
                replicas=step.replicas,
                instance=instance,
            )
        )
        _log.info(
            "scaling",
            action=step.action.value,
            cause=step.cause.value,
            variant=step.variant,
            instance=instance,
            reason=step.reason,
        )
        if instance is None:
            return
        if target is not None:
            self._instances.load(instance, target)
        elif step.action is Action.REPLICATE and step.instance is not None:
            self._instances.load(instance, self._instances.variants[step.instance])
        elif step.action is Action.UNLOAD:
            self._instances.unload(instance, f"{step.cause.value}: {step.reason}")
