"""The worker as one pure machine: `advance(serving, event, now) -> (serving, commands)`.

It composes the rules of this folder over what the worker holds (`serving`): lifecycle (`instances`), order
(`schedule`), what runs together (`sharing`), what hangs (`overdue`) and room (`memory`). Promises: a batch is answered,
delivered or discarded exactly once; running threads and leased cores together never exceed the worker's cores; a
draining worker takes nothing new and ends empty.
"""

from __future__ import annotations

from msgspec.structs import replace

from infaas.domain.ids import InstanceId
from infaas.domain.lifecycle import Death, InstanceState
from infaas.domain.query import Code
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
from infaas_worker.decide.hang import paused_s
from infaas_worker.decide.instances import (
    DrainAsked,
    ExecutorDied,
    Instance,
    InstanceEvent,
    LoadFailed,
    ProbeDue,
    Refuse,
    Stage,
    TimePassed,
    Unload,
    WorkArrived,
    WorkDone,
    WorkKind,
    WorkStarted,
    WorkWithdrawn,
    step,
)
from infaas_worker.decide.memory import NoRoom, make_room
from infaas_worker.decide.overdue import excused_loads, excused_runs, hung_loads, hung_runs
from infaas_worker.decide.schedule import PATIENCE_S, Waiting, choose
from infaas_worker.decide.serving import Lease, Serving, Work, residents, running_of, waiting_of
from infaas_worker.decide.sharing import mates_of, shared


def advance(serving: Serving, event: Event, now: float) -> tuple[Serving, tuple[Command, ...]]:
    """What an event makes of the worker, and everything that must now be done, in order."""
    machine = _Machine(serving, now)
    machine.take(event)
    machine.expire()
    machine.start()
    machine.lease()
    return machine.result()


class _Machine:
    """One call of `advance`: collects changes on copies, so that the values it was given stay as they were. What nearly
    every event changes is copied at the start; what seldom changes is shared until it is replaced."""

    def __init__(self, serving: Serving, now: float) -> None:
        self._before = serving
        self._now = now
        self._instances = dict(serving.instances)
        self._work = dict(serving.work)
        self._asked = serving.asked
        self._leases = serving.leases
        self._own_keys = serving.own_keys
        self._is_draining = serving.is_draining
        self._failure = serving.failure
        self._ticked_at = serving.ticked_at
        self._commands: list[Command] = []
        self._has_news = False
        """Whether an instance came, went or changed its state."""

    def result(self) -> tuple[Serving, tuple[Command, ...]]:
        has_failed = self._failure != self._before.failure
        if has_failed:
            self._commands.append(Condemn(self._failure))
        if has_failed or self._is_draining != self._before.is_draining or self._has_news:
            self._commands.append(Report())
        after = replace(
            self._before,
            is_draining=self._is_draining,
            failure=self._failure,
            ticked_at=self._ticked_at,
            instances=self._instances,
            asked=self._asked,
            work=self._work,
            leases=self._leases,
            own_keys=self._own_keys,
        )
        return after, tuple(self._commands)

    def take(self, event: Event) -> None:
        match event:
            case BatchArrived():
                self._arrive(event)
            case InstanceTold(instance, told):
                self._tell(instance, told)
            case RunEnded(instance, done):
                for each in done:
                    self._tell(instance, each)
            case QueriesCancelled(key, queries):
                self._cancel(key, queries)
            case LoadAsked():
                self._load(event)
            case DeathRemembered():
                self._remember(event)
            case UnloadAsked(instance, reason):
                self._tell(instance, DrainAsked(reason))
            case OwnerLeft(owner):
                self._orphan(owner)
            case LeaseAsked(lease, cores, max_s):
                self._leases = {**self._leases, lease: Lease(cores, max_s, self._now)}
            case LeaseEnded(lease):
                self._leases = {key: kept for key, kept in self._leases.items() if key != lease}
            case DrainBegan():
                self._is_draining = True
            case DrainEnded():
                self._is_draining = False
            case Ticked(stall_ratio):
                self._excuse()
                self._tick()
                self._end_hung(stall_ratio)

    def expire(self) -> None:
        """Queries whose deadline passed while they were staged are answered now and never run."""
        overdue = [w for w in self._work.values() if w.started_at is None and w.deadline <= self._now]
        for work in overdue:
            if work.kind is WorkKind.BATCH:
                alive = work.queries.alive(self._now)
                self._keep(work, alive, Code.DEADLINE_PASSED, "the deadline passed before the batch began to run")

    def start(self) -> None:
        room: dict[InstanceId, int] = {}
        waiting: list[Waiting] = []
        for work in self._work.values():
            if work.started_at is None and (one := self._instances.get(work.instance)) is not None:
                left = room[work.instance] = one.in_flight - len(one.running)
                if left > 0:
                    waiting.append(waiting_of(work))
        if not waiting or self._failure:
            return
        running = running_of(self._work.values(), self._leases.values())
        for key in choose(waiting, running, room, self._before.cores, self._now):
            if self._work[key].started_at is None:  # it may run with another already
                self._begin(self._work[key])

    def _begin(self, first: Work) -> None:
        latencies = self._asked[first.instance].latencies
        mates = mates_of(first, self._work.values(), latencies, self._now)
        alone = (replace(first, started_at=self._now),)
        run = shared((first, *mates), latencies, self._now) if mates else alone
        for work in run:
            self._work[work.key] = work
            self._tell(work.instance, WorkStarted(work.key))
        others = tuple([(mate.key, mate.queries.ids) for mate in run[1:]])
        self._commands.append(Run(first.key, first.kind, first.instance, first.queries.ids, others))

    def lease(self) -> None:
        """Cores that nothing runs on or waits for go to whoever asked first."""
        if self._failure or all(lease.core_ids for lease in self._leases.values()) or self._is_short_of_cores():
            return
        used = sum(run.threads for run in running_of(self._work.values(), self._leases.values()))
        held = {core for lease in self._leases.values() for core in lease.core_ids}
        free_ids = [core for core in reversed(self._before.core_ids) if core not in held]
        leases = dict(self._leases)
        for key, lease in self._leases.items():
            if lease.core_ids:
                continue
            if used + lease.cores > self._before.cores:
                break
            ids, free_ids = tuple(free_ids[: lease.cores]), free_ids[lease.cores :]
            used += lease.cores
            leases[key] = replace(lease, core_ids=ids, granted_at=self._now)
            self._commands.append(GrantLease(key, ids))
        self._leases = leases

    def _arrive(self, event: BatchArrived) -> None:
        instance = self._instances.get(event.instance)
        refusal: tuple[Code, str] | None = None
        if self._failure:
            refusal = Code.DRAINING, f"the worker failed and is replaced: {self._failure}"
        elif self._is_draining:
            refusal = Code.DRAINING, "the worker is draining"
        elif instance is None:
            refusal = Code.UNAVAILABLE, f"no instance {event.instance!r} on this worker"
        elif not len(event.queries):
            refusal = Code.INVALID, "the batch holds no queries"
        elif instance.state is InstanceState.READY and self._held_by(event.owner, event.instance) >= instance.slots:
            refusal = Code.SATURATED, f"all {instance.slots} slots of instance {event.instance} are taken"
        if refusal is not None or instance is None:
            self._commands.append(Answer(event.key, *(refusal or (Code.INTERNAL, "")), was_running=False))
            return
        deadline = min(event.queries.deadlines)
        self._work[event.key] = Work(
            event.key,
            WorkKind.BATCH,
            event.instance,
            instance.threads,
            event.owner,
            self._now,
            deadline,
            event.queries,
            event.expected_s,
            event.slow_s,
            likeness=event.likeness,
        )
        self._tell(event.instance, WorkArrived(event.key))

    def _tell(self, instance_id: InstanceId, event: InstanceEvent) -> None:
        instance = self._instances.get(instance_id)
        if instance is None:
            return
        if isinstance(event, WorkDone):
            self._finish(event)
        after, commands = step(instance, event, self._now)
        self._instances[instance_id] = after
        if after.state is not instance.state:
            self._has_news = True
        for command in commands:
            match command:
                case Refuse(key, code, text, was_running):
                    self._drop(key, code, text, was_running)
                case Unload():
                    self._commands.append(BeginUnload(instance_id))
                case Stage(kind):
                    self._stage(after, kind)
        if after.state is InstanceState.GONE:
            del self._instances[instance_id]
            self._asked = {key: asked for key, asked in self._asked.items() if key != instance_id}

    def _finish(self, event: WorkDone) -> None:
        work = self._work.pop(event.key, None)
        if work is None or work.kind is not WorkKind.BATCH:
            return
        self._commands.append(Discard(work.key) if work.is_orphan else Deliver(work.key, work.cancelled))

    def _drop(self, key: int, code: Code, text: str, was_running: bool) -> None:
        work = self._work.pop(key, None)
        if work is None or work.kind is not WorkKind.BATCH:
            return
        self._commands.append(Discard(key) if work.is_orphan else Answer(key, code, text, was_running))

    def _cancel(self, key: int, queries: frozenset[int]) -> None:
        work = self._work.get(key)
        if work is None:
            return
        if work.started_at is not None:
            self._work[key] = replace(work, cancelled=work.cancelled | queries)
            return
        self._keep(work, work.queries.but(queries), Code.CANCELLED, "taken back before the batch began to run")

    def _keep(self, work: Work, alive: Queries, code: Code, text: str) -> None:
        """Go on with fewer queries; without any, the batch is answered as a whole."""
        if len(alive) == len(work.queries):
            return
        if len(alive):
            self._work[work.key] = replace(work, queries=alive, deadline=min(alive.deadlines))
            return
        self._drop(work.key, code, text, was_running=False)
        self._tell(work.instance, WorkWithdrawn(work.key))

    def _orphan(self, owner: str) -> None:
        for work in [w for w in self._work.values() if w.owner == owner and w.kind is WorkKind.BATCH]:
            self._work[work.key] = replace(work, is_orphan=True)
            if work.started_at is None:
                self._drop(work.key, Code.CANCELLED, "", was_running=False)
                self._tell(work.instance, WorkWithdrawn(work.key))

    def _load(self, event: LoadAsked) -> None:
        if event.instance in self._instances:
            return
        there = residents(self._instances.values(), self._now, event.variant)
        room = make_room(event.memory_bytes, self._before.memory_bytes, there)
        instance = Instance(
            event.instance, event.variant, event.threads, event.memory_bytes, self._now, isolation=event.isolation
        )
        self._instances[event.instance] = instance
        self._asked = {**self._asked, event.instance: event}
        self._has_news = True
        if event.problem:
            self._tell(event.instance, LoadFailed(event.problem))
        elif self._is_draining or self._failure:
            self._tell(event.instance, LoadFailed(self._failure or "the worker is draining"))
        elif event.threads > self._before.cores:
            reason = f"the variant needs {event.threads} threads, this worker has {self._before.cores} cores"
            self._tell(event.instance, LoadFailed(reason))
        elif isinstance(room, NoRoom):
            self._tell(event.instance, LoadFailed(f"no room in memory: {room.reason}"))
        else:
            for evicted in room.evict:
                self._tell(evicted, DrainAsked(f"least useful by measured use; makes room for {event.variant}"))
            self._commands.append(BeginLoad(event.instance, room.wait_for))

    def _remember(self, event: DeathRemembered) -> None:
        if event.instance not in self._instances:
            self._has_news = True
            self._instances[event.instance] = Instance(
                event.instance,
                event.variant,
                threads=1,
                memory_bytes=0,
                asked_at=self._now,
                state=InstanceState.FAILED,
                reason=event.reason,
                failed_at=self._now,
                death=event.death,
            )

    def _excuse(self) -> None:
        """Nothing that runs is blamed for the time in which this process itself was paused."""
        paused = paused_s(self._ticked_at, self._now, self._before.tick_s)
        self._ticked_at = self._now
        if paused > 0.0:
            self._work |= excused_runs(self._work.values(), paused, self._now)
            self._instances |= excused_loads(self._instances.values(), paused, self._now)

    def _end_hung(self, stall_ratio: float) -> None:
        """A run that has taken far too long is given up with its instance; one that nothing can end condemns the
        whole process, because its thread and core are gone for good. So does a load, which has one of the few turns."""
        patience = self._before.patience
        for instance, reason in hung_runs(self._work.values(), patience, stall_ratio, self._now):
            self._tell(instance, ExecutorDied(reason, Death.HUNG))
            if instance in self._instances and not self._instances[instance].is_killable:
                self._condemn(instance, reason)
        for instance, reason in hung_loads(self._instances.values(), self._asked, patience, stall_ratio, self._now):
            self._condemn(instance, reason)

    def _condemn(self, instance: InstanceId, reason: str) -> None:
        if not self._failure:
            self._failure = f"instance {instance} of {self._instances[instance].variant} {reason}"
            self._send_back_staged()

    def _send_back_staged(self) -> None:
        """What has not begun is better off on another worker than behind a core that is lost."""
        for work in [w for w in self._work.values() if w.started_at is None and w.kind is WorkKind.BATCH]:
            self._keep(work, Queries(), Code.DRAINING, f"the worker failed and is replaced: {self._failure}")

    def _stage(self, instance: Instance, kind: WorkKind) -> None:
        self._own_keys += 1
        key = -self._own_keys
        asked = self._asked[instance.id]
        is_first = kind is WorkKind.WARM_UP
        self._work[key] = Work(
            key,
            kind,
            instance.id,
            instance.threads,
            "",
            self._now,
            self._now + PATIENCE_S,
            expected_s=asked.warm_up_s if is_first else asked.probe_s,
            slow_s=asked.warm_up_slow_s if is_first else asked.probe_slow_s,
        )
        self._tell(instance.id, WorkArrived(key, kind))

    def _tick(self) -> None:
        for key, instance in list(self._instances.items()):
            self._tell(key, TimePassed())
            last = instance.last_ok_at if instance.last_ok_at is not None else instance.loaded_at
            if last is not None and self._now - last >= self._before.probe_interval_s:
                self._tell(key, ProbeDue())

    def _held_by(self, owner: str, instance: InstanceId) -> int:
        return sum(work.owner == owner and work.instance == instance for work in self._work.values())

    def _is_short_of_cores(self) -> bool:
        """Whether work waits that only lacks cores."""
        return any(
            work.started_at is None and len(one.running) < one.in_flight
            for work in self._work.values()
            if (one := self._instances.get(work.instance)) is not None
        )
