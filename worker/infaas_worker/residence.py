"""What the executors hold for the instances: each is loaded, proved and unloaded here, by tasks with names.

The rules (`decide`) say when; this performs it on threads of its own and reports back as events. Lives on the event
loop, owned by `Instances`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from msgspec.structs import replace

from infaas.clock import Clock
from infaas.domain.ids import InstanceId
from infaas.domain.lifecycle import Death, InstanceState
from infaas.domain.variant import Isolation, Variant
from infaas.errors import InfaasError, UnavailableError
from infaas.observe.log import get_logger
from infaas_worker.decide.events import LoadAsked
from infaas_worker.decide.instances import (
    ExecutorDied,
    Instance,
    InstanceEvent,
    LoadBegan,
    Loaded,
    LoadFailed,
    Unloaded,
    WorkDone,
    WorkKind,
)
from infaas_worker.executors.base import BatchIn, BatchOut, Brief, Killable, LoadedModel
from infaas_worker.executors.sample import warm_up_sizes
from infaas_worker.loading import Loader, Opened, is_elsewhere, on_thread, run, warm_up

_log = get_logger(__name__)


class Diary(Protocol):
    """What outlives this process of what it ran (`blackbox`)."""

    def loading(self, instance: str, variant: str) -> None: ...

    def loaded(self, instance: str, variant: str) -> None: ...

    def began(self, instance: str) -> None: ...

    def ended(self, instance: str) -> None: ...

    def gone(self, instance: str) -> None: ...


class RunWatch(Protocol):
    """What notices that a run hangs which the loop performs itself (`watch`)."""

    def began(self, what: str) -> None: ...

    def ended(self) -> None: ...


class Rules(Protocol):
    """Who decides (`Instances`): is told what happened, and knows what state an instance is in."""

    def tell(self, instance: InstanceId, event: InstanceEvent) -> None: ...

    def ask_load(self, asked: LoadAsked) -> None: ...

    def instance(self, instance: InstanceId) -> Instance | None: ...


class Residence:
    """Every call returns at once; what takes time is a task, whose outcome `rules` are told."""

    def __init__(
        self, loader: Loader, clock: Clock, rules: Rules, diary: Diary | None, watch: RunWatch | None = None
    ) -> None:
        """`diary` is told what runs in this process, so that its end can be explained; `watch`, what the loop runs."""
        self._loader = loader
        self._clock = clock
        self._rules = rules
        self._diary = diary
        self._variants: dict[InstanceId, Variant] = {}
        self._run_watch = watch
        self._models: dict[InstanceId, LoadedModel] = {}
        self._brief: dict[InstanceId, Brief] = {}
        """Those of the models that have brief runs."""
        self._open_sizes: dict[InstanceId, int] = {}
        self._out: dict[InstanceId, asyncio.Event] = {}
        """Set once the executor no longer holds the instance."""
        self._estimating: set[InstanceId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def variants(self) -> Mapping[InstanceId, Variant]:
        return self._variants

    def add(self, instance: InstanceId, variant: Variant) -> None:
        """Asks the rules for its load once its size is known. One that is here already is left alone."""
        if instance in self._variants:
            return
        self._variants[instance] = variant
        self._out[instance] = asyncio.Event()
        if variant.memory_bytes:
            self._rules.ask_load(_load_asked(instance, variant, variant.memory_bytes))
        else:
            self._estimating.add(instance)
            self._spawn(f"size-{instance}", self._estimate(instance, variant))

    def stop_estimating(self, instance: InstanceId) -> None:
        self._estimating.discard(instance)

    def keep(self, alive: Collection[InstanceId]) -> None:
        """Forget all others."""
        for instance in [key for key in self._variants if key not in alive]:
            if instance in self._estimating or instance in self._models:
                continue
            del self._variants[instance]
            self._open_sizes.pop(instance, None)
            self._out.pop(instance).set()
            if self._diary is not None:
                self._diary.gone(instance)

    def load(self, instance: InstanceId, wait_for: tuple[InstanceId, ...]) -> None:
        """Once every instance in `wait_for` is out."""
        self._spawn(f"load-{instance}", self._load(instance, wait_for))

    def unload(self, instance: InstanceId) -> None:
        self._spawn(f"unload-{instance}", self._unload(instance))

    def prove(self, key: int, kind: WorkKind, instance: InstanceId) -> None:
        """A warm-up or a probe."""
        name = "warm" if kind is WorkKind.WARM_UP else "probe"
        self._spawn(f"{name}-{instance}", self._prove(key, kind, instance))

    def is_brief(self, instance: InstanceId, items: int) -> bool:
        """Whether a batch of so many items may be run by whoever has it (`run_here`)."""
        brief = self._brief.get(instance)
        return brief is not None and brief.is_brief(items)

    def run_here(self, instance: InstanceId, batch: BatchIn) -> BatchOut:
        """Raises what the future of `run` does. `ran` must follow."""
        if self._diary is not None:
            self._diary.began(instance)
        if self._run_watch is None:
            return self._brief[instance].run(batch)
        self._run_watch.began(f"instance {instance} of {self._variants[instance].name}")
        try:
            return self._brief[instance].run(batch)
        finally:
            self._run_watch.ended()

    def run(self, instance: InstanceId, batch: BatchIn) -> Future[BatchOut]:
        """`ran` must follow."""
        if self._diary is not None:
            self._diary.began(instance)
        return self._models[instance].submit(batch)

    def ran(self, instance: InstanceId) -> None:
        if self._diary is not None:
            self._diary.ended(instance)

    def death_of(self, instance: InstanceId) -> Death | None:
        """Of an instance whose executor has died: only one with a process of its own can have crashed in it."""
        return Death.CRASHED if isinstance(self._models.get(instance), Killable) else None

    async def emptied(self) -> None:
        """Until nothing is held and nothing is going on."""
        while self._models or self._tasks:
            self._changed.clear()
            if self._tasks:
                await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)
            else:
                await self._changed.wait()

    def abandon(self) -> None:
        """Cancel what goes on; the process ends now."""
        for task in self._tasks:
            task.cancel()

    async def _estimate(self, instance: InstanceId, variant: Variant) -> None:
        try:
            asked = _load_asked(instance, variant, await self._loader.memory_bytes(variant))
        except InfaasError as error:
            asked = replace(_load_asked(instance, variant, 0), problem=error.text)
        if instance not in self._estimating:
            asked = replace(asked, problem="unloaded before loading began")
        self._estimating.discard(instance)
        self._rules.ask_load(asked)

    async def _load(self, instance: InstanceId, wait_for: tuple[InstanceId, ...]) -> None:
        variant = self._variants[instance]
        for other in wait_for:
            if (out := self._out.get(other)) is not None:
                await out.wait()
        try:
            opened = await self._loader.open(variant, lambda: self._load_began(instance, variant))
        except InfaasError as error:
            _log.warning("load failed", instance=instance, variant=variant.name, reason=error.text)
            self._fail_load(instance, error.text)
        except Exception as error:  # an executor's bug must not leave the instance loading for ever
            _log.error("load broke", instance=instance, variant=variant.name, exc_info=error)
            self._fail_load(instance, f"{type(error).__name__}: {error}")
        else:
            self._take_in(instance, variant, opened)

    def _load_began(self, instance: InstanceId, variant: Variant) -> None:
        """A process of its own is ended by its executor, a server's answer has its own bound; neither is watched."""
        if variant.isolation is Isolation.PROCESS or is_elsewhere(variant):
            return
        if self._diary is not None:
            self._diary.loading(instance, variant.name)
        self._rules.tell(instance, LoadBegan())

    def _take_in(self, instance: InstanceId, variant: Variant, opened: Opened) -> None:
        model = self._models[instance] = opened.model
        in_flight = model.max_in_flight
        if isinstance(model, Brief):
            self._brief[instance] = model
        if isinstance(model, Killable):
            self._watch(instance, model)
        elif self._diary is not None and not is_elsewhere(variant):
            self._diary.loaded(instance, variant.name)
        _log.info("loaded", instance=instance, variant=variant.name, load_s=round(opened.load_s, 4))
        is_killable = isinstance(model, Killable)
        self._rules.tell(instance, Loaded(opened.load_s, opened.was_cold, in_flight, opened.memory_bytes, is_killable))

    def _watch(self, instance: InstanceId, model: Killable) -> None:
        loop = asyncio.get_running_loop()

        def tell(ended: Future[str]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._died, instance, ended.result())

        model.ended.add_done_callback(tell)

    def _died(self, instance: InstanceId, reason: str) -> None:
        """Its process has ended by itself, whether or not it was running anything."""
        _log.warning("instance died", instance=instance, reason=reason)
        self._rules.tell(instance, ExecutorDied(reason, Death.CRASHED))

    def _fail_load(self, instance: InstanceId, reason: str) -> None:
        if self._diary is not None:
            self._diary.gone(instance)
        self._out[instance].set()
        self._rules.tell(instance, LoadFailed(reason))

    async def _prove(self, key: int, kind: WorkKind, instance: InstanceId) -> None:
        """Real inferences, outside any query."""
        variant, model = self._variants[instance], self._models[instance]
        started = self._clock.now()
        text = ""
        if self._diary is not None:
            self._diary.began(instance)
        try:
            if kind is WorkKind.WARM_UP:
                self._open_sizes[instance] = await warm_up(model, variant)
            else:
                await run(model, variant, variant.fixed_batch or 1, self._open_sizes.get(instance, 1))
        except UnavailableError as error:
            reason = f"{kind.value} ended it: {error.text}"
            self._rules.tell(instance, ExecutorDied(reason, self.death_of(instance)))
            return
        except InfaasError as error:
            text = error.text
            _log.warning(f"{kind.value} failed", instance=instance, variant=variant.name, reason=text)
        except Exception as error:  # an executor's bug must not leave the instance waiting for ever
            text = f"{type(error).__name__}: {error}"
            _log.error(f"{kind.value} broke", instance=instance, variant=variant.name, exc_info=error)
        finally:
            if self._diary is not None:
                self._diary.ended(instance)
        self._rules.tell(instance, WorkDone(key, kind, 0, self._clock.now() - started, text))

    async def _unload(self, instance: InstanceId) -> None:
        self._brief.pop(instance, None)
        model = self._models.get(instance)
        if model is not None:
            found = self._rules.instance(instance)
            if isinstance(model, Killable) and found is not None and found.state is InstanceState.FAILED:
                model.kill(found.reason)
            try:
                await on_thread(f"unload-{instance}", model.close)
            except InfaasError as error:
                _log.warning("unload failed", instance=instance, reason=error.text)
        self._models.pop(instance, None)
        if (out := self._out.get(instance)) is not None:
            out.set()
        found = self._rules.instance(instance)
        _log.info("unloaded", instance=instance, reason=found.reason if found is not None else None)
        self._rules.tell(instance, Unloaded())

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        self._changed.set()

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("instance task failed", task=task.get_name(), exc_info=error)


def _load_asked(instance: InstanceId, variant: Variant, memory_bytes: int) -> LoadAsked:
    profile = variant.profile
    asked = LoadAsked(instance, variant.name, variant.threads, memory_bytes, isolation=variant.isolation)
    if profile is None:
        return asked
    sizes, probe = warm_up_sizes(variant), variant.fixed_batch or 1
    most = variant.fixed_batch or variant.max_batch_size
    return replace(
        asked,
        warm_up_s=sum(variant.run_s(size) for size in sizes),
        probe_s=profile.latency_s(probe),
        warm_up_slow_s=sum(variant.run_s(size, "p99_s") for size in sizes),
        probe_slow_s=profile.latency_s(probe, "p99_s"),
        load_s=profile.cold_load_s,
        latencies=tuple([variant.run_s(items, "p50_s") for items in range(1, most + 1)]),
    )
