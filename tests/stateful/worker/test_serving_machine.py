"""Random lives of a whole worker: nothing is lost, nothing is answered twice, no core is used twice, and nobody shares
a run who may not."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from infaas_worker.decide.advance import advance
from infaas_worker.decide.events import (
    Answer,
    BatchArrived,
    BeginLoad,
    BeginUnload,
    Deliver,
    Discard,
    DrainBegan,
    DrainEnded,
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
from infaas_worker.decide.instances import ExecutorDied, Loaded, LoadFailed, Unloaded, WorkDone, WorkKind
from infaas_worker.decide.passing import may_pass, passed
from infaas_worker.decide.serving import Serving

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import INSTANCE_TRANSITIONS, InstanceState

CORES = 3
OWNERS = ("c1", "c2", "c3")
TOGETHER = (0.1, 0.11, 0.12, 0.13)
"""By items: two runs take nearly twice as long as one of both."""


@dataclass
class Sent:
    owner: str
    instance: str
    queries: dict[int, float]
    """Deadlines by query."""
    cancelled: set[int] = field(default_factory=set)
    outcomes: int = 0
    ran: tuple[int, ...] | None = None
    likeness: str | None = None


class WorkerLife(RuleBasedStateMachine):
    """Plays executor, loader, controllers and profiler, and keeps its own simple books."""

    instances = Bundle("instances")
    batches = Bundle("batches")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.serving = Serving(tuple(range(CORES)), memory_bytes=100, probe_interval_s=5.0)
        self.threads: dict[str, int] = {}
        self.memory: dict[str, int] = {}
        self.loading: dict[str, tuple[str, ...]] = {}
        self.unloading: set[str] = set()
        self.in_executor: set[str] = set()
        self.running: dict[int, tuple[str, WorkKind]] = {}
        """By the first batch of each run."""
        self.mates: dict[int, tuple[int, ...]] = {}
        self.sent: dict[int, Sent] = {}
        self.granted: dict[int, int] = {}
        self.asked: dict[int, int] = {}
        self.gone_owners: set[str] = set()
        self.count = 0

    def post(self, event) -> None:
        before = {key: one.state for key, one in self.serving.instances.items()}
        self.serving, commands = advance(self.serving, event, self.now)
        for key, one in self.serving.instances.items():
            was = before.get(key, InstanceState.LOADING)
            path = {was, one.state}
            assert len(path) == 1 or one.state in reachable(was), f"{key}: {was} to {one.state}"
        for command in commands:
            self.perform(command)

    def perform(self, command) -> None:
        match command:
            case Run(key, kind, instance, queries, mates):
                assert key not in self.running
                assert instance in self.in_executor
                assert all(one != instance for one, _ in self.running.values()), "one run per instance"
                self.running[key] = (instance, kind)
                self.mates[key] = tuple(mate for mate, _ in mates)
                if kind is WorkKind.BATCH:
                    self.check_run([(key, queries), *mates])
            case Deliver(key, _) | Answer(key, _, _, _) | Discard(key):
                self.sent[key].outcomes += 1
                if isinstance(command, Deliver):
                    assert self.sent[key].ran is not None
                    assert self.sent[key].owner not in self.gone_owners
                if isinstance(command, Answer):
                    assert command.was_running == (self.sent[key].ran is not None)
                if isinstance(command, Discard):
                    assert self.sent[key].owner in self.gone_owners
            case BeginLoad(instance, wait_for):
                self.loading[instance] = wait_for
            case BeginUnload(instance):
                assert instance in self.in_executor
                assert instance not in self.unloading
                self.unloading.add(instance)
                # A failed instance is killed: what still ran in it, because it hung, has ended.
                self.running = {key: run for key, run in self.running.items() if run[0] != instance}
            case GrantLease(key, core_ids):
                assert len(core_ids) == self.asked[key]
                assert not self.startable(), "cores are leased away from work that waits for them"
                self.granted[key] = len(core_ids)
            case Report():
                pass

    def check_run(self, members):
        for key, queries in members:
            sent = self.sent[key]
            assert sent.ran is None, "it runs twice"
            assert queries, "nothing to run"
            assert all(sent.queries[q] > self.now for q in queries), "an expired query runs"
            assert not set(queries) & sent.cancelled, "a cancelled query runs"
            sent.ran = queries
        if len(members) > 1:
            of = [self.sent[key] for key, _ in members]
            assert len({(sent.instance, sent.likeness) for sent in of}) == 1
            assert of[0].likeness is not None
            assert len({sent.owner for sent in of}) == len(of), "a controller's own batches share a run"
            assert sum(len(queries) for _, queries in members) <= len(TOGETHER)

    @initialize(target=instances)
    def two_warm_instances(self):
        """So that most lives get to the interesting part."""
        names = [self.ask_to_load_one(1, 20, TOGETHER), self.ask_to_load_one(2, 30)]
        for _ in names:
            self._finish_load()
        while self.running:
            self._finish_run()
        assert all(one.state is InstanceState.READY for one in self.serving.instances.values())
        return multiple(*names)

    @rule(
        target=instances,
        threads=st.integers(1, 4),
        memory=st.integers(0, 60),
        latencies=st.sampled_from([TOGETHER, ()]),
    )
    def ask_to_load(self, threads, memory, latencies):
        return self.ask_to_load_one(threads, memory, latencies)

    def ask_to_load_one(self, threads, memory, latencies=()):
        self.count += 1
        name = f"i{self.count}"
        self.threads[name], self.memory[name] = threads, memory
        self.post(LoadAsked(InstanceId(name), VariantName("v"), threads, memory, 0.3, 0.1, latencies=latencies))
        return name

    @rule(outcome=st.sampled_from(["ok", "ok", "ok", "error"]), order=st.permutations(["run", "load", "unload"]))
    def something_ends(self, outcome, order):
        """A run, a load or an unload, well or badly."""
        for kind in order:
            if kind == "run" and self.running:
                return self._finish_run("" if outcome == "ok" else "raised")
            if kind == "load" and self._loadable():
                return self._finish_load(is_failing=outcome != "ok")
            if kind == "unload" and self.unloading:
                return self._finish_unload()
        return None

    @rule(name=instances)
    def ask_to_unload(self, name):
        self.post(UnloadAsked(InstanceId(name), "asked"))

    @rule(
        target=batches,
        name=instances,
        owner=st.sampled_from(OWNERS),
        slacks=st.lists(st.floats(0.05, 4.0), min_size=0, max_size=3),
        likeness=st.sampled_from(["a", "a", "b", None]),
    )
    def send_a_batch(self, name, owner, slacks, likeness):
        key = self.send_one(name, owner, slacks, likeness)
        return key if self.sent[key].outcomes == 0 else multiple()

    @rule(target=batches, name=instances, slack=st.floats(0.05, 4.0), order=st.permutations(OWNERS))
    def everybody_sends_a_batch(self, name, slack, order):
        keys = [self.send_one(name, owner, [slack], "a") for owner in order]
        return multiple(*(key for key in keys if self.sent[key].outcomes == 0))

    def send_one(self, name, owner, slacks, likeness):
        self.count += 1
        key = self.count
        self.gone_owners.discard(owner)
        queries = Queries.of(*((i, 1, self.now + slack) for i, slack in enumerate(slacks)))
        deadlines = dict(zip(queries.ids, queries.deadlines, strict=True))
        self.sent[key] = Sent(owner, name, deadlines, likeness=likeness)
        arrived = BatchArrived(key, owner, InstanceId(name), queries, 0.2, 0.25, likeness)
        if may_pass(self.serving, arrived.instance, queries, self.now):
            for error in ("", "raised"):
                self.check_passing(arrived, error)
        self.post(arrived)
        return key

    def check_passing(self, arrived, error):
        """In one step it comes to the same as step by step, and nothing else was to be done."""
        begun, commands = advance(self.serving, arrived, self.now)
        assert commands == (Run(arrived.key, WorkKind.BATCH, arrived.instance, arrived.queries.ids, ()),)
        done = WorkDone(arrived.key, WorkKind.BATCH, len(arrived.queries), 0.2, error)
        over, commands = advance(begun, InstanceTold(arrived.instance, done), self.now + 0.2)
        assert commands == (Deliver(arrived.key, frozenset()),)
        assert over == passed(self.serving, arrived.instance, done, self.now + 0.2)

    @rule(key=batches, queries=st.frozensets(st.integers(0, 2), min_size=1))
    def cancel(self, key, queries):
        if self.sent[key].ran is None:
            self.sent[key].cancelled |= queries
        self.post(QueriesCancelled(key, queries))

    @rule(owner=st.sampled_from(OWNERS))
    def lose_a_controller(self, owner):
        self.gone_owners.add(owner)
        for sent in self.sent.values():
            if sent.owner == owner and sent.outcomes == 0:
                sent.owner = f"gone-{owner}"
                self.gone_owners.add(sent.owner)
        self.post(OwnerLeft(owner))
        for sent in self.sent.values():
            assert not (sent.owner == f"gone-{owner}" and sent.ran is None and sent.outcomes == 0), "still staged"

    @rule()
    def executor_dies(self):
        if self.running:
            key = next(iter(self.running))
            name, _ = self.running.pop(key)
            self.post(InstanceTold(InstanceId(name), ExecutorDied("killed")))

    @rule(target=leases, cores=st.integers(1, CORES))
    def ask_for_cores(self, cores):
        self.count += 1
        self.asked[self.count] = cores
        self.post(LeaseAsked(self.count, cores, 0.25))
        return self.count

    @rule(key=consumes(leases))
    def end_a_lease(self, key):
        self.granted.pop(key, None)
        self.post(LeaseEnded(key))

    @rule(seconds=st.floats(0.01, 3.0))
    def time_passes(self, seconds):
        self.now += seconds
        self.post(Ticked())

    @rule()
    def drain(self):
        self.post(DrainBegan("test"))

    @precondition(lambda self: self.serving.is_draining)
    @rule()
    def resume(self):
        self.post(DrainEnded())

    @invariant()
    def no_core_is_used_twice(self):
        used = sum(self.threads[name] for name, _ in self.running.values()) + sum(self.granted.values())
        assert used <= CORES
        assert used == self.serving.busy_cores

    @invariant()
    def every_batch_has_at_most_one_outcome(self):
        assert all(sent.outcomes <= 1 for sent in self.sent.values())

    @invariant()
    def no_batch_is_lost(self):
        open_keys = {key for key, sent in self.sent.items() if sent.outcomes == 0}
        assert open_keys == {key for key, work in self.serving.work.items() if work.kind is WorkKind.BATCH}

    @invariant()
    def nothing_that_could_start_waits_beside_free_cores(self):
        startable = self.startable()
        if startable:
            first = min(startable, key=lambda work: (min(work.deadline, work.arrived_at + 1.0), work.key))
            assert first.threads > CORES - self.serving.busy_cores

    def startable(self):
        return [
            work
            for work in self.serving.work.values()
            if work.started_at is None and not self.serving.instances[work.instance].running
        ]

    def teardown(self):
        """A drain ends empty, whatever happened before."""
        self.post(DrainBegan("the test ends"))
        for key in [*self.asked]:
            self.granted.pop(key, None)
            self.post(LeaseEnded(key))
        for name in list(self.serving.instances):
            self.post(UnloadAsked(name, "the test ends"))
        for _ in range(10_000):
            if not (self.running or self.loading or self.unloading):
                break
            self._finish_run()
            self._finish_load()
            self._finish_unload()
        self.now += 100.0
        self.post(Ticked())
        assert not self.serving.instances
        assert not self.serving.work
        assert all(sent.outcomes == 1 for sent in self.sent.values())

    def _finish_run(self, error=""):
        if self.running:
            key = next(iter(self.running))
            name, kind = self.running.pop(key)
            done = [WorkDone(each, kind, 1, 0.1, error) for each in (key, *self.mates.pop(key))]
            if kind is WorkKind.BATCH:
                self.post(RunEnded(InstanceId(name), tuple(done)))
            else:
                self.post(InstanceTold(InstanceId(name), *done))

    def _loadable(self):
        return [key for key, wait in self.loading.items() if not set(wait) & self.in_executor]

    def _finish_load(self, *, is_failing=False):
        for name in self._loadable()[:1]:
            del self.loading[name]
            if is_failing:
                self.post(InstanceTold(InstanceId(name), LoadFailed("boom")))
                return
            self.in_executor.add(name)
            assert sum(self.memory[key] for key in self.in_executor) <= 100, "memory over budget"
            self.post(InstanceTold(InstanceId(name), Loaded(0.5, True, 1, self.memory[name], is_killable=True)))

    def _finish_unload(self):
        for name in sorted(self.unloading)[:1]:
            self.unloading.discard(name)
            self.in_executor.discard(name)
            self.post(InstanceTold(InstanceId(name), Unloaded()))


def reachable(state: InstanceState) -> set[InstanceState]:
    """By any number of arrows: one event may take two steps."""
    found: set[InstanceState] = set()
    edge = [state]
    while edge:
        for after in INSTANCE_TRANSITIONS[edge.pop()]:
            if after not in found:
                found.add(after)
                edge.append(after)
    return found


WorkerLife.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestWorkerLife = WorkerLife.TestCase
