"""The set of instances, and everything done to them: performs what `decide.advance` commands, reports back to it.

Lives on the event loop. One queue of events is worked off without any `await` in between, so that every decision is
made on a whole state. Batches run from here; what executors hold, and how it gets there, is `residence`'s.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future

from infaas.clock import Clock
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.query import Code
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
    Queries,
    QueriesCancelled,
    Report,
    Run,
    RunEnded,
    Ticked,
    UnloadAsked,
)
from infaas_worker.decide.instances import ExecutorDied, Instance, InstanceEvent, WorkDone, WorkKind
from infaas_worker.decide.passing import may_pass, passed
from infaas_worker.decide.serving import Serving
from infaas_worker.executors.base import BatchIn, BatchOut
from infaas_worker.loading import Loader
from infaas_worker.residence import Diary, Residence, RunWatch

_log = get_logger(__name__)


class Instances:
    """Owned by the composition root, which calls `close` once."""

    def __init__(
        self,
        serving: Serving,
        loader: Loader,
        clock: Clock,
        on_report: Callable[[], None],
        diary: Diary | None = None,
        watch: RunWatch | None = None,
    ) -> None:
        """`diary` is told what runs in this process, so that its end can be explained; `watch`, what the loop runs."""
        self.condemned = asyncio.Event()
        """Set once this process must be replaced; `serving.failure` says why."""
        self._serving = serving
        self._residence = Residence(loader, clock, self, diary, watch)
        self._clock = clock
        self._on_report = on_report
        self._events: deque[Event] = deque()
        self._is_working = False
        self._held: dict[int, Held] = {}
        self._key_of: dict[tuple[str, int], int] = {}
        self._keys = 0
        self._leases: dict[int, asyncio.Future[tuple[int, ...]]] = {}
        self._changed = asyncio.Event()

    @property
    def serving(self) -> Serving:
        return self._serving

    @property
    def variants(self) -> Mapping[InstanceId, Variant]:
        return self._residence.variants

    def instance(self, instance: InstanceId) -> Instance | None:
        return self._serving.instances.get(instance)

    def load(self, instance: InstanceId, variant: Variant) -> None:
        """Idempotent; the outcome is in the reports."""
        self._residence.add(instance, variant)

    def ask_load(self, asked: LoadAsked) -> None:
        self._post(asked)

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
        self._residence.stop_estimating(instance)
        self._post(UnloadAsked(instance, reason))

    def submit(
        self,
        owner: Owner,
        number: int,
        instance: InstanceId,
        batch: BatchIn,
        queries: Queries,
        *,
        may_share: bool = False,
    ) -> None:
        """`number` is the owner's own for the batch, which may share a run with others' if it says so. The owner may
        be called back before this returns."""
        now = self._clock.now()
        if self._may_pass(instance, queries, now):
            self._pass(owner, number, instance, batch, queries, now)
            return
        self._keys += 1
        key = self._keys
        useful_until = max(queries.deadlines, default=now)
        self._held[key] = Held(owner, number, instance, batch, queries.ids, now, useful_until)
        self._key_of[owner.id, number] = key
        variant = self.variants.get(instance)
        items = sum(queries.items)
        is_measured = variant is not None and variant.profile is not None
        expected_s = variant.run_s(items, "p50_s") if variant is not None and is_measured else None
        slow_s = variant.run_s(items, "p99_s") if variant is not None and is_measured else None
        likeness = batch.likeness if may_share else None
        self._post(BatchArrived(key, owner.id, instance, queries, expected_s, slow_s, likeness))

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
        await self._residence.emptied()

    def abandon(self) -> None:
        """Cancel what `close` could not wait for; the process ends now."""
        self._residence.abandon()

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

    def tell(self, instance: InstanceId, event: InstanceEvent) -> None:
        self._post(InstanceTold(instance, event))

    def _perform(self, command: Command) -> None:
        match command:
            case Run(key, kind, instance, queries, mates):
                if kind is WorkKind.BATCH:
                    self._run(instance, [(key, queries), *mates])
                else:
                    self._residence.prove(key, kind, instance)
            case Deliver(key, _):
                self._deliver(key)
            case Answer(key, code, text, was_running):
                held = self._release(key)
                held_s = self._clock.now() - held.arrived_at
                held.owner.refused(held.number, code, text, was_running, held_s)
            case Discard(key):
                self._release(key)
            case BeginLoad(instance, wait_for):
                self._residence.load(instance, wait_for)
            case BeginUnload(instance):
                self._residence.unload(instance)
            case GrantLease(key, core_ids):
                future = self._leases[key]
                if not future.done():
                    future.set_result(core_ids)
            case Condemn(reason):
                _log.error("this worker must be replaced", reason=reason)
                self.condemned.set()
            case Report():
                self._residence.keep(self._serving.instances.keys())
                self._on_report()

    # -- running

    def _run(self, instance: InstanceId, members: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """One batch, or several that share a run, each with its queries."""
        now = self._clock.now()
        keys = [key for key, _ in members]
        run = [self._held[key] for key in keys]
        batches = [held.begin(queries, now) for held, (_, queries) in zip(run, members, strict=True)]
        total = sum([held.items for held in run])
        if len(run) > 1:
            for held in run:
                held.run_items = total
        batch = BatchIn.joined(batches, max([held.useful_until for held in run]) - now)
        if self._residence.is_brief(instance, total):
            self._run_here(keys, instance, batch)
            return
        for held in run:
            held.owner.started(held.number)
        future = self._residence.run(instance, batch)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._ran, keys, instance, done))

    def _may_pass(self, instance: InstanceId, queries: Queries, now: float) -> bool:
        """Whether a batch runs here and now, and nobody needs to hear of it before it is over."""
        if self._is_working or not self._residence.is_brief(instance, sum(queries.items)):
            return False
        return may_pass(self._serving, instance, queries, now)

    def _pass(
        self, owner: Owner, number: int, instance: InstanceId, batch: BatchIn, queries: Queries, now: float
    ) -> None:
        outcome: BatchOut | Exception
        try:
            outcome = self._residence.run_here(instance, batch)
        except Exception as error:  # it is told as any other outcome
            outcome = error
        self._residence.ran(instance)
        after = self._clock.now()
        (result,) = _results_of(outcome, [len(queries)])
        if isinstance(result, UnavailableError):
            self.tell(instance, ExecutorDied(result.text, self._residence.death_of(instance)))
            text = f"instance {instance} failed: {result.text}"
            owner.refused(number, Code.UNAVAILABLE, text, was_running=True, held_s=after - now)
            return
        text, run_s = ("", result.run_s) if isinstance(result, BatchOut) else (result.text, after - now)
        done = WorkDone(0, WorkKind.BATCH, sum(queries.items), run_s, text)
        self._serving = passed(self._serving, instance, done, after)
        owner.ran(number, Ran(queries.ids, result, frozenset(), 0.0, run_s))

    def _run_here(self, keys: Sequence[int], instance: InstanceId, batch: BatchIn) -> None:
        """Over before this returns, so nobody need be told that it began, and what it tells is worked off after the
        event that started it."""
        outcome: BatchOut | Exception
        try:
            outcome = self._residence.run_here(instance, batch)
        except Exception as error:  # it is told as any other outcome
            outcome = error
        self._ended(keys, instance, outcome)

    def _ran(self, keys: Sequence[int], instance: InstanceId, future: Future[BatchOut]) -> None:
        error = future.exception()
        self._ended(keys, instance, future.result() if error is None else error)

    def _ended(self, keys: Sequence[int], instance: InstanceId, outcome: BatchOut | BaseException) -> None:
        self._residence.ran(instance)
        if keys[0] not in self._held:  # its instance failed meanwhile, and it was answered then
            return
        members = [(key, self._held[key]) for key in keys]
        results = _results_of(outcome, [len(held.ran) for _, held in members])
        first = results[0]
        if isinstance(first, UnavailableError):
            self.tell(instance, ExecutorDied(first.text, self._residence.death_of(instance)))
            return
        run_s = first.run_s if isinstance(first, BatchOut) else self._clock.now() - members[0][1].started_at
        for (_, held), result in zip(members, results, strict=True):
            held.result = result
        done: list[WorkDone] = []
        for key, held in members:
            text = held.result.text if isinstance(held.result, InfaasError) else ""
            done.append(WorkDone(key, WorkKind.BATCH, held.items, run_s if key == keys[0] else 0.0, text))
        self._post(RunEnded(instance, tuple(done)))

    def _deliver(self, key: int) -> None:
        held = self._release(key)
        if held.result is None:
            raise RuntimeError(f"batch {key} is delivered without a result")
        run_s = held.result.run_s if isinstance(held.result, BatchOut) else self._clock.now() - held.started_at
        staged_s = held.started_at - held.arrived_at
        cancelled = frozenset(held.cancelled)
        held.owner.ran(held.number, Ran(held.ran, held.result, cancelled, staged_s, run_s, held.run_items))

    def _release(self, key: int) -> Held:
        held = self._held.pop(key)
        if self._key_of.get((held.owner.id, held.number)) == key:
            del self._key_of[held.owner.id, held.number]
        return held


def _results_of(outcome: BatchOut | BaseException, counts: Sequence[int]) -> Sequence[BatchOut | InfaasError]:
    """What became of each batch of a run, of so many queries each."""
    if isinstance(outcome, BatchOut):
        if len(counts) == 1:
            return [outcome]
        try:
            return outcome.cut(counts)
        except InfaasError as misfit:
            outcome = misfit
    if not isinstance(outcome, InfaasError):
        outcome = UnavailableError(f"the executor broke: {type(outcome).__name__}: {outcome}")
    return [outcome] * len(counts)
