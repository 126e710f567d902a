"""The set of instances, and everything done to them: performs what `decide.advance` commands, reports back to it.

Lives on the event loop; executors and loading have their own threads. One queue of events is worked off without any
`await` in between, so that every decision is made on a whole state.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Protocol

from infaas.clock import Clock
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import Death, InstanceState
from infaas.domain.variant import Variant
from infaas.errors import InfaasError, UnavailableError
from infaas.observe.log import get_logger
from infaas_worker.batches import Held, Owner, Ran
from infaas_worker.decide.advance import advance
from infaas_worker.decide.events import (
    Answer,
    BatchArrived,
    BeginLoad,
    BeginUnload,
    Command,
    Condemn,
    DeathRemembered,
    Deliver,
    Discard,
    DrainBegan,
    DrainEnded,
    Event,
    GrantLease,
    InstanceTold,
    LeaseAsked,
    LeaseEnded,
    LoadAsked,
    OwnerLeft,
    QueriesCancelled,
    Report,
    Run,
    StagedQuery,
    Ticked,
    UnloadAsked,
)
from infaas_worker.decide.instances import (
    ExecutorDied,
    InstanceEvent,
    Loaded,
    LoadFailed,
    Unloaded,
    WorkDone,
    WorkKind,
)
from infaas_worker.decide.serving import Serving
from infaas_worker.executors.base import BatchIn, BatchOut, Killable, LoadedModel
from infaas_worker.loading import Loader, on_thread, run, warm_up

_log = get_logger(__name__)


class Diary(Protocol):
    """What outlives this process of what it ran (`blackbox`)."""

    def loaded(self, instance: str, variant: str) -> None: ...

    def began(self, instance: str) -> None: ...

    def ended(self, instance: str) -> None: ...

    def gone(self, instance: str) -> None: ...


class Instances:
    """Owned by the composition root, which calls `close` once."""

    def __init__(
        self,
        serving: Serving,
        loader: Loader,
        clock: Clock,
        on_report: Callable[[], None],
        diary: Diary | None = None,
    ) -> None:
        """`diary` is told what runs in this process, so that its end can be explained."""
        self._diary = diary
        self.condemned = asyncio.Event()
        """Set once this process must be replaced; `serving.failure` says why."""
        self._serving = serving
        self._loader = loader
        self._clock = clock
        self._on_report = on_report
        self._events: deque[Event] = deque()
        self._is_working = False
        self._held: dict[int, Held] = {}
        self._key_of: dict[tuple[str, int], int] = {}
        self._keys = 0
        self._leases: dict[int, asyncio.Future[tuple[int, ...]]] = {}
        self._variants: dict[InstanceId, Variant] = {}
        self._models: dict[InstanceId, LoadedModel] = {}
        self._open_sizes: dict[InstanceId, int] = {}
        self._out: dict[InstanceId, asyncio.Event] = {}
        """Set once the executor no longer holds the instance."""
        self._estimating: set[InstanceId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def serving(self) -> Serving:
        return self._serving

    @property
    def variants(self) -> Mapping[InstanceId, Variant]:
        return self._variants

    def load(self, instance: InstanceId, variant: Variant) -> None:
        """Idempotent; the outcome is in the reports."""
        if instance in self._variants:
            return
        self._variants[instance] = variant
        self._out[instance] = asyncio.Event()
        if variant.memory_bytes:
            self._post(_load_asked(instance, variant, variant.memory_bytes))
        else:
            self._estimating.add(instance)
            self._spawn(f"size-{instance}", self._estimate(instance, variant))

    def reject(self, instance: InstanceId, problem: str) -> None:
        """Show an instance that cannot even be tried as FAILED with the reason."""
        self._post(LoadAsked(instance, VariantName(""), 1, 0, problem=problem))

    def remember(self, deaths: Iterable[DeathRemembered]) -> None:
        """Show what ended this worker's process in its life before."""
        for death in deaths:
            self._post(death)

    def now(self) -> float:
        """The clock that deadlines are kept on."""
        return self._clock.now()

    def unload(self, instance: InstanceId, reason: str) -> None:
        self._estimating.discard(instance)
        self._post(UnloadAsked(instance, reason))

    def submit(
        self, owner: Owner, number: int, instance: InstanceId, batch: BatchIn, queries: tuple[StagedQuery, ...]
    ) -> None:
        """`number` is the owner's own for the batch. The owner may be called back before this returns."""
        self._keys += 1
        key = self._keys
        ids = tuple(query.id for query in queries)
        now = self._clock.now()
        useful_until = max((query.deadline for query in queries), default=now)
        self._held[key] = Held(owner, number, instance, batch, ids, now, useful_until)
        self._key_of[owner.id, number] = key
        variant = self._variants.get(instance)
        items = sum(query.items for query in queries)
        profile = variant.profile if variant else None
        expected_s = profile.latency_s(items, "p50_s") if profile else None
        slow_s = profile.latency_s(items, "p99_s") if profile else None
        self._post(BatchArrived(key, owner.id, instance, queries, expected_s, slow_s))

    def cancel(self, owner: str, number: int, queries: frozenset[int]) -> None:
        """Of a batch that is over, or never was: nothing happens."""
        key = self._key_of.get((owner, number))
        if key is not None:
            self._held[key].cancelled |= queries
            self._post(QueriesCancelled(key, queries))

    def leave(self, owner: str) -> None:
        self._post(OwnerLeft(owner))

    def ask_cores(self, cores: int, max_s: float) -> tuple[int, asyncio.Future[tuple[int, ...]]]:
        """The future gets the core ids when they are free. `end_lease` must follow, granted or not."""
        self._keys += 1
        future: asyncio.Future[tuple[int, ...]] = asyncio.get_running_loop().create_future()
        self._leases[self._keys] = future
        key = self._keys
        self._post(LeaseAsked(key, cores, max_s))
        return key, future

    def end_lease(self, key: int) -> None:
        self._leases.pop(key, None)
        self._post(LeaseEnded(key))

    def tick(self, stall_ratio: float = 0.0) -> None:
        """Now and then; `stall_ratio` is the share of time that the host takes from this machine."""
        self._post(Ticked(stall_ratio))

    def begin_drain(self, reason: str) -> None:
        self._post(DrainBegan(reason))

    def end_drain(self) -> None:
        self._post(DrainEnded())

    async def drained(self) -> None:
        """Until no batch is staged or running."""
        while self._held:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Unload everything, waiting for what runs. Whoever bounds the time cancels this."""
        for instance in list(self._serving.instances):
            self._post(UnloadAsked(instance, "the worker stops"))
        while self._models or self._tasks:
            self._changed.clear()
            if self._tasks:
                await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)
            else:
                await self._changed.wait()

    def abandon(self) -> None:
        """Cancel what `close` could not wait for; the process ends now."""
        for task in self._tasks:
            task.cancel()

    # -- events in, commands out

    def _post(self, event: Event) -> None:
        self._events.append(event)
        if self._is_working:
            return
        self._is_working = True
        try:
            while self._events:
                self._serving, commands = advance(self._serving, self._events.popleft(), self._clock.now())
                for command in commands:
                    self._perform(command)
        finally:
            self._is_working = False
        self._changed.set()

    def _tell(self, instance: InstanceId, event: InstanceEvent) -> None:
        self._post(InstanceTold(instance, event))

    def _perform(self, command: Command) -> None:
        match command:
            case Run(key, kind, instance, queries):
                self._run(key, kind, instance, queries)
            case Deliver(key, _):
                self._deliver(key)
            case Answer(key, code, text, was_running):
                held = self._release(key)
                held_s = self._clock.now() - held.arrived_at
                held.owner.refused(held.number, code, text, was_running, held_s)
            case Discard(key):
                self._release(key)
            case BeginLoad(instance, wait_for):
                self._spawn(f"load-{instance}", self._load(instance, wait_for))
            case BeginUnload(instance):
                self._spawn(f"unload-{instance}", self._unload(instance))
            case GrantLease(key, core_ids):
                future = self._leases[key]
                if not future.done():
                    future.set_result(core_ids)
            case Condemn(reason):
                _log.error("this worker must be replaced", reason=reason)
                self.condemned.set()
            case Report():
                self._forget_gone()
                self._on_report()

    def _forget_gone(self) -> None:
        for instance in [key for key in self._variants if key not in self._serving.instances]:
            if instance in self._estimating or instance in self._models:
                continue
            del self._variants[instance]
            self._open_sizes.pop(instance, None)
            self._out.pop(instance).set()
            if self._diary is not None:
                self._diary.gone(instance)

    # -- running

    def _run(self, key: int, kind: WorkKind, instance: InstanceId, queries: tuple[int, ...]) -> None:
        if kind is WorkKind.WARM_UP:
            self._spawn(f"warm-{instance}", self._prove(key, kind, instance))
        elif kind is WorkKind.PROBE:
            self._spawn(f"probe-{instance}", self._prove(key, kind, instance))
        else:
            held = self._held[key]
            held.started_at = self._clock.now()
            held.ran = queries
            held.owner.started(held.number)
            batch = replace(held.only(queries), timeout_s=held.useful_until - held.started_at)
            held.items = sum(query.items for query in batch.queries)
            if self._diary is not None:
                self._diary.began(instance)
            future = self._models[instance].submit(batch)
            loop = asyncio.get_running_loop()
            future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._ran, key, instance, done))

    def _ran(self, key: int, instance: InstanceId, future: Future[BatchOut]) -> None:
        if self._diary is not None:
            self._diary.ended(instance)
        held = self._held.get(key)
        if held is None:  # its instance failed meanwhile, and it was answered then
            return
        run_s = self._clock.now() - held.started_at
        error = future.exception()
        if error is None:
            held.result = future.result()
            run_s = held.result.run_s
        elif isinstance(error, InfaasError):
            held.result = error
        else:
            held.result = UnavailableError(f"the executor broke: {type(error).__name__}: {error}")
        if isinstance(held.result, UnavailableError):
            self._tell(instance, ExecutorDied(held.result.text, self._death_of(instance)))
            return
        text = held.result.text if isinstance(held.result, InfaasError) else ""
        self._tell(held.instance, WorkDone(key, WorkKind.BATCH, held.items, run_s, text))

    def _deliver(self, key: int) -> None:
        held = self._release(key)
        if held.result is None:
            raise RuntimeError(f"batch {key} is delivered without a result")
        run_s = held.result.run_s if isinstance(held.result, BatchOut) else self._clock.now() - held.started_at
        staged_s = held.started_at - held.arrived_at
        held.owner.ran(held.number, Ran(held.ran, held.result, frozenset(held.cancelled), staged_s, run_s))

    def _release(self, key: int) -> Held:
        held = self._held.pop(key)
        if self._key_of.get((held.owner.id, held.number)) == key:
            del self._key_of[held.owner.id, held.number]
        return held

    def _died(self, instance: InstanceId, reason: str) -> None:
        """Its process has ended by itself, whether or not it was running anything."""
        _log.warning("instance died", instance=instance, reason=reason)
        self._tell(instance, ExecutorDied(reason, Death.CRASHED))

    def _death_of(self, instance: InstanceId) -> Death | None:
        """Of an instance whose executor has died: only one with a process of its own can have crashed in it."""
        return Death.CRASHED if isinstance(self._models.get(instance), Killable) else None

    async def _prove(self, key: int, kind: WorkKind, instance: InstanceId) -> None:
        """A warm-up or a probe: real inferences, outside any query."""
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
            self._tell(instance, ExecutorDied(reason, self._death_of(instance)))
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
        self._tell(instance, WorkDone(key, kind, 0, self._clock.now() - started, text))

    # -- loading

    async def _estimate(self, instance: InstanceId, variant: Variant) -> None:
        try:
            asked = _load_asked(instance, variant, await self._loader.memory_bytes(variant))
        except InfaasError as error:
            asked = replace(_load_asked(instance, variant, 0), problem=error.text)
        if instance not in self._estimating:
            asked = replace(asked, problem="unloaded before loading began")
        self._estimating.discard(instance)
        self._post(asked)

    async def _load(self, instance: InstanceId, wait_for: tuple[InstanceId, ...]) -> None:
        variant = self._variants[instance]
        for other in wait_for:
            if (out := self._out.get(other)) is not None:
                await out.wait()
        try:
            opened = await self._loader.open(variant)
        except InfaasError as error:
            _log.warning("load failed", instance=instance, variant=variant.name, reason=error.text)
            self._fail_load(instance, error.text)
            return
        except Exception as error:  # an executor's bug must not leave the instance loading for ever
            _log.error("load broke", instance=instance, variant=variant.name, exc_info=error)
            self._fail_load(instance, f"{type(error).__name__}: {error}")
            return
        model = self._models[instance] = opened.model
        in_flight = model.max_in_flight
        if isinstance(model, Killable):
            self._watch(instance, model)
        elif self._diary is not None:
            self._diary.loaded(instance, variant.name)
        _log.info("loaded", instance=instance, variant=variant.name, load_s=round(opened.load_s, 4))
        is_killable = isinstance(model, Killable)
        self._tell(instance, Loaded(opened.load_s, opened.was_cold, in_flight, opened.memory_bytes, is_killable))

    def _watch(self, instance: InstanceId, model: Killable) -> None:
        loop = asyncio.get_running_loop()

        def tell(ended: Future[str]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._died, instance, ended.result())

        model.ended.add_done_callback(tell)

    def _fail_load(self, instance: InstanceId, reason: str) -> None:
        self._out[instance].set()
        self._tell(instance, LoadFailed(reason))

    async def _unload(self, instance: InstanceId) -> None:
        model = self._models.get(instance)
        if model is not None:
            found = self._serving.instances.get(instance)
            if isinstance(model, Killable) and found is not None and found.state is InstanceState.FAILED:
                model.kill(found.reason)
            try:
                await on_thread(f"unload-{instance}", model.close)
            except InfaasError as error:
                _log.warning("unload failed", instance=instance, reason=error.text)
        self._models.pop(instance, None)
        if (out := self._out.get(instance)) is not None:
            out.set()
        found = self._serving.instances.get(instance)
        _log.info("unloaded", instance=instance, reason=found.reason if found is not None else None)
        self._tell(instance, Unloaded())

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("instance task failed", task=task.get_name(), exc_info=error)


def _load_asked(instance: InstanceId, variant: Variant, memory_bytes: int) -> LoadAsked:
    profile = variant.profile
    probe_s = profile.latency_s(variant.fixed_batch or 1) if profile else None
    warm_up_s = profile.latency_s(1) + profile.latency_s(variant.max_batch_size) if profile else None
    return LoadAsked(
        instance, variant.name, variant.threads, memory_bytes, warm_up_s, probe_s, isolation=variant.isolation
    )
