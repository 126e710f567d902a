"""Random lives of queries, batches, instances and workers: what the engine promises holds after every step."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.metadata import entry_points
from itertools import accumulate, count

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from infaas_controller.commands import Answered, BatchResult, CancelStaged, Finish, LoadOn, SendBatch
from infaas_controller.decide.options import Situation
from infaas_controller.decide.policies.base import Policy, Verdict
from infaas_controller.engine import Engine
from infaas_controller.lanes import RANKS, URGENCIES
from infaas_controller.placing import EngineSettings
from infaas_controller.policies import GROUP, PolicyBook
from infaas_controller.queues import Ticket, TicketState
from infaas_controller.room import Bounds

from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Code, Objective, Priority
from infaas.domain.variant import Variant, VariantState
from infaas.testing.builders import a_query, a_variant, a_view, a_worker, an_instance

VARIANTS = [
    a_variant("poor", cost=0.01, accuracy=0.70, p95_ms=1, per_item_ms=0.05),
    a_variant("fair", cost=0.10, accuracy=0.90, p95_ms=4, per_item_ms=0.5, max_batch=8),
    a_variant("good", cost=0.50, accuracy=0.97, p95_ms=20, per_item_ms=20, threads=2, max_batch=4),
    a_variant("rigid", cost=0.02, accuracy=0.90, p95_ms=2, fixed_batch=1, max_batch=1),
    a_variant("other", task="letters", model="m2", cost=0.1, accuracy=0.95, p95_ms=3, max_batch=8),
]
MOST_WAITING = 40
POLICIES = {point.name: point.load() for point in entry_points(group=GROUP)}
BY_NAME: dict[str, Variant] = {variant.name: variant for variant in VARIANTS}
LIMITS = {variant.name: variant.fixed_batch or variant.max_batch_size for variant in VARIANTS}
ACCURACY = {variant.name: variant.profile.accuracy.value for variant in VARIANTS if variant.profile}


class EngineMachine(RuleBasedStateMachine):
    """Plays the dispatcher's shell and the workers by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.names = count(1)
        self.is_broken = False
        self.book = PolicyBook(POLICIES)
        rng = random.Random(3)
        self.engine = Engine(
            EngineSettings(
                self.policy,
                "slo",
                bounds=Bounds(MOST_WAITING),
                draw=rng.random,
                fresh_instance=lambda: InstanceId(f"made-{next(self.names)}"),
            )
        )
        self.tickets: list[Ticket] = []
        self.ended: dict[int, Code | None] = {}
        self.batches: dict[int, SendBatch] = {}

    def policy(self, name: str) -> Policy:
        """Every policy raises while the machine says so."""
        machine, policy = self, self.book(name)

        class Breakable:
            name = policy.name
            decides_together = getattr(policy, "decides_together", False)

            def on_arrival(self, situation: Situation) -> Verdict:
                if machine.is_broken:
                    raise ZeroDivisionError("of a plug-in")
                return policy.on_arrival(situation)

        return Breakable()

    @initialize()
    def begin(self) -> None:
        workers = [
            a_worker("w1", instances=[an_instance("a", variant="poor"), an_instance("b", variant="fair")]),
            a_worker("w2", instances=[an_instance("c", variant="good", worker="w2")]),
        ]
        self.view = a_view(variants=VARIANTS, workers=workers)
        self.engine.view_changed(self.view, self.now)
        self.perform()

    # -- what happens

    @rule(
        latency_ms=st.sampled_from([None, 3.0, 30.0, 200.0, 2_000.0]),
        floor=st.sampled_from([None, 0.0, 0.8, 0.95]),
        cap=st.sampled_from([None, None, 0.2]),
        objective=st.sampled_from(list(Objective)),
        priority=st.sampled_from(list(Priority)),
        items=st.sampled_from([1, 1, 1, 2, 4]),
        fallback=st.booleans(),
        policy=st.sampled_from([None, None, "infaas", "static:fair"]),
        tenant=st.sampled_from([None, None, "a", "b", "c"]),
        how_many=st.integers(1, 12),
        handle=st.sampled_from(["digits", "digits", "m1", "fair", "poor", "letters"]),
        are_together=st.booleans(),
    )
    def arrive(
        self,
        are_together: bool,
        how_many: int,
        handle: str,
        latency_ms: float | None,
        items: int,
        floor: float | None,
        cap: float | None,
        **given: object,
    ) -> None:
        query = a_query(
            handle, at=self.now, latency_ms=latency_ms, items=items, accuracy_min=floor, max_cost=cap,
            **given,  # type: ignore[arg-type]
        )  # fmt: skip
        before = self.engine.queues.items("digits")
        known = len(self.tickets)
        queries = [query._replace(id=f"q{known + number}") for number in range(how_many)]
        if are_together:
            tickets = [self.engine.ticket(each, None) for each in queries]
            self.tickets += tickets
            self.engine.arrive_together(tickets, self.now)
            assert self.engine.queues.items("digits") <= max(MOST_WAITING, before), "let in beyond the bound"
        else:
            for each in queries:
                self.tickets.append(self.engine.arrive(each, None, self.now))
                assert self.engine.queues.items("digits") <= max(MOST_WAITING, before), "let in beyond the bound"
        self.perform()

    @rule()
    def flush(self) -> None:
        self.engine.flush(self.now)
        self.perform()

    @rule(seconds=st.sampled_from([0.0005, 0.004, 0.05, 0.5, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.engine.expire(self.now)
        self.perform()
        for ticket in self.tickets:
            assert ticket.state is TicketState.FINISHED or ticket.deadline > self.now

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def start_batch(self, data: st.DataObject) -> None:
        self.engine.started(data.draw(st.sampled_from(sorted(self.batches))), self.now, data.draw(st.integers(0, 3)))

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), leaves_out=st.booleans())
    def finish_batch(self, data: st.DataObject, leaves_out: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.batches)))
        batch = self.batches.pop(number)
        answered = batch.tickets[1:] if leaves_out else batch.tickets
        outputs = {ticket.number: "out" for ticket in answered}
        result = BatchResult(run_s=0.002, outputs=outputs, others=data.draw(st.integers(0, 3)))
        self.engine.done(number, result, self.now)
        self.perform()

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), was_running=st.booleans())
    def fail_batch(self, data: st.DataObject, was_running: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.batches)))
        del self.batches[number]
        code = Code.MODEL_FAILED if was_running else Code.DRAINING
        self.engine.done(number, BatchResult(code.value, "said the test", was_running), self.now)
        self.perform()

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def batch_cannot_be_sent(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.batches)))
        del self.batches[number]
        self.engine.batch_unsent(number, self.now)
        self.perform()

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), code=st.sampled_from([Code.INVALID, Code.CANCELLED, Code.DEADLINE_PASSED, Code.MODEL_FAILED]))
    def some_queries_of_a_batch_fail_by_themselves(self, data: st.DataObject, code: Code) -> None:
        number = data.draw(st.sampled_from(sorted(self.batches)))
        batch = self.batches.pop(number)
        failed = {ticket.number: (code.value, "said the test") for ticket in batch.tickets[::2]}
        outputs: dict[int, object] = {ticket.number: "out" for ticket in batch.tickets[1::2]}
        self.engine.done(number, BatchResult(run_s=0.002, outputs=outputs, failed=failed), self.now)
        self.perform()

    @rule(data=st.data(), batches=st.integers(0, 3))
    def load_is_reported(self, data: st.DataObject, batches: int) -> None:
        if self.engine.ledger.lanes:
            lane = data.draw(st.sampled_from(sorted(self.engine.ledger.lanes)))
            self.engine.load_reported(InstanceId(lane), batches, self.now)

    @rule(data=st.data())
    def an_order_to_load_cannot_be_sent(self, data: st.DataObject) -> None:
        known = {id for record in self.view.workers.values() for id in record.instances}
        pending = sorted(id for id in self.engine.ledger.lanes if id not in known)
        if pending:
            self.engine.load_unsent(InstanceId(data.draw(st.sampled_from(pending))), self.now)
            self.perform()

    @rule()
    def the_policy_breaks_or_is_mended(self) -> None:
        self.is_broken = not self.is_broken

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(self.tickets)))
        self.perform()

    @rule(data=st.data(), state=st.sampled_from(list(InstanceState)))
    def instance_changes(self, data: st.DataObject, state: InstanceState) -> None:
        """Any state, forwards or backwards: the engine believes what it is told."""
        worker = data.draw(st.sampled_from(sorted(self.view.workers)))
        record = self.view.workers[WorkerId(worker)]
        ids = sorted(record.instances)
        lanes = self.engine.ledger.lanes.values()
        pending = sorted(lane.id for lane in lanes if lane.worker.id == worker and lane.id not in record.instances)
        id = data.draw(st.sampled_from([*ids, *pending, "fresh"]))
        if id == "fresh":
            id = f"new-{next(self.names)}"
        lane = self.engine.ledger.lanes.get(InstanceId(id))
        known = record.instances.get(InstanceId(id))
        variant = known.variant if known else lane.variant if lane else data.draw(st.sampled_from(sorted(LIMITS)))
        changed = an_instance(id, variant=variant, worker=worker, state=state)
        instances = [*(each for key, each in record.instances.items() if key != id), changed]
        self.view = self.view.with_worker(a_worker(worker, instances=instances))
        self.follow_view()

    @rule(worker=st.sampled_from(["w1", "w2", "w3"]))
    def worker_comes(self, worker: str) -> None:
        if worker in self.view.workers:
            self.engine.worker_reported(self.view.workers[WorkerId(worker)], self.now)
            self.follow_view()
        else:
            instances = [an_instance(f"{worker}-{next(self.names)}", variant="fair", worker=worker)]
            self.view = self.view.with_worker(a_worker(worker, instances=instances))
            self.engine.worker_reported(self.view.workers[WorkerId(worker)], self.now)
            self.follow_view()

    @precondition(lambda self: len(self.view.workers) > 1)
    @rule(data=st.data(), stays_in_the_view=st.booleans())
    def worker_dies(self, data: st.DataObject, stays_in_the_view: bool) -> None:
        worker = WorkerId(data.draw(st.sampled_from(sorted(self.view.workers))))
        self.engine.worker_lost(worker, self.now)
        if not stays_in_the_view:
            self.view = self.view.without_worker(worker)
        self.follow_view()

    @rule(data=st.data(), state=st.sampled_from([VariantState.READY, VariantState.DISABLED, VariantState.RETIRED]))
    def variant_changes(self, data: st.DataObject, state: VariantState) -> None:
        name = data.draw(st.sampled_from(sorted(LIMITS)))
        changed = replace(BY_NAME[name], state=state)
        self.view = replace(self.view, variants={**self.view.variants, VariantName(name): changed})
        self.follow_view()

    @rule(data=st.data(), comes_back=st.booleans(), with_model=st.booleans())
    def variant_leaves_and_its_instances_drain(self, data: st.DataObject, comes_back: bool, with_model: bool) -> None:
        """As when a model is unregistered: the catalogue forgets it, its workers unload it."""
        name = data.draw(st.sampled_from(sorted(LIMITS)))
        whole = self.view
        left = {key: variant for key, variant in whole.variants.items() if key != name}
        self.view = replace(whole, variants=left, models={} if with_model else whole.models)
        self.follow_view()
        for record in list(self.view.workers.values()):
            state = {key: InstanceState.DRAINING for key, one in record.instances.items() if one.variant == name}
            instances = [replace(one, state=state.get(key, one.state)) for key, one in record.instances.items()]
            self.view = self.view.with_worker(a_worker(record.id, instances=instances))
        self.follow_view()
        if comes_back or not left:
            self.view = replace(self.view, variants=whole.variants)
            self.follow_view()
        if with_model:
            self.view = replace(self.view, models=whole.models)
            self.follow_view()

    def follow_view(self) -> None:
        self.engine.view_changed(self.view, self.now)
        self.perform()
        known = {number for lane in self.engine.ledger.lanes.values() for number in lane.flights}
        self.batches = {number: batch for number, batch in self.batches.items() if number in known}

    # -- performing

    def perform(self) -> None:
        while self.engine.commands:
            command = self.engine.commands.popleft()
            if isinstance(command, Finish):
                number = command.ticket.number
                assert number not in self.ended, "a query ended twice"
                self.ended[number] = command.error.code
            elif isinstance(command, Answered):
                for ticket in command.tickets:
                    assert ticket.number not in self.ended, "a query ended twice"
                    self.ended[ticket.number] = None
            elif isinstance(command, SendBatch):
                self.check_batch(command)
                self.batches[command.number] = command
            else:
                assert isinstance(command, CancelStaged | LoadOn)

    def check_batch(self, batch: SendBatch) -> None:
        variant, tickets = batch.lane.variant, batch.tickets
        assert tickets
        items = sum(ticket.items for ticket in tickets)
        assert items <= LIMITS[variant], "more items than the variant takes"
        if variant == "rigid":
            assert items == 1
        for tenant in {ticket.query.requirements.tenant for ticket in tickets}:
            deadlines = [ticket.deadline for ticket in tickets if ticket.query.requirements.tenant == tenant]
            assert deadlines == sorted(deadlines), "not in deadline order"
        assert batch.lane.is_ready
        assert len(batch.lane.flights) <= batch.lane.slots
        for ticket in tickets:
            wanted = ticket.query.requirements
            is_fallback = ticket.choice is not None and ticket.choice.fallback is not None
            admission = ticket.admission
            assert admission is not None
            assert admission.floor is not None
            floor = admission.floor if wanted.accuracy_min is None else wanted.accuracy_min
            assert is_fallback or floor == 0 or ACCURACY[variant] >= floor, "below the floor"
            assert wanted.max_cost is None or variant != "good", "above the cap"
            if ticket.deaths or ticket.raised:
                assert len(tickets) == 1, "what may have killed its instance runs alone"
            assert ticket.deadline > self.now

    # -- what always holds

    def waiting(self) -> list[Ticket]:
        """Those that are promised to an instance; without any worker for them they are parked."""
        parked = self.engine._homeless
        return [t for t in self.tickets if t.state is TicketState.WAITING and t.number not in parked]

    @invariant()
    def every_query_is_in_exactly_one_place(self) -> None:
        waiting = self.waiting()
        parked = [t for t in self.tickets if t.number in self.engine._homeless]
        sent = [t for t in self.tickets if t.state is TicketState.SENT]
        finished = [t for t in self.tickets if t.state is TicketState.FINISHED]
        assert len(finished) == len(self.ended)
        assert len(parked) == len(self.engine._homeless)
        assert all(t.state is TicketState.WAITING for t in parked)
        assert self.engine.live == len(waiting) + len(parked) + len(sent)
        assert self.engine.queues.waiting == len(waiting)
        for ticket in sent:
            assert ticket.batch in self.batches
            assert ticket in self.batches[ticket.batch].tickets
        for ticket in waiting:
            assert ticket.lane is not None
            assert ticket.lane.id in self.engine.ledger.lanes

    @invariant()
    def reservations_are_exactly_what_waits(self) -> None:
        promised: dict[tuple[str, int], int] = {}
        for ticket in self.waiting():
            if ticket.lane is not None:
                key = (ticket.lane.id, ticket.urgency)
                promised[key] = promised.get(key, 0) + ticket.items
        for lane in self.engine.ledger.lanes.values():
            mine = [promised.get((lane.id, urgency), 0) for urgency in range(URGENCIES)]
            assert lane.ahead == list(accumulate(mine))
            ranks = [each.rank for each in self.engine.queues.classes_for(lane)]
            assert lane.worker.busy.keys() <= lane.worker.lanes.keys()
            assert lane.classes == [sum(each <= rank for each in ranks) for rank in range(RANKS)]
            assert (lane.id in lane.worker.busy) == (not lane.is_idle or lane.foreign > 0)

    @invariant()
    def what_is_counted_for_the_bound_and_for_eviction_is_what_waits(self) -> None:
        waiting = self.waiting()
        counted: dict[str, list[int]] = {}
        came: dict[tuple[str, int], set[int]] = {}
        for ticket in waiting:
            assert ticket.eligibility is not None
            counted.setdefault(ticket.eligibility.task, [0, 0, 0])[ticket.rank] += ticket.items
            came.setdefault((ticket.eligibility.task, ticket.rank), set()).add(ticket.number)
        lines = self.engine.ledger.lines
        assert {(line.task, line.rank): set(line.tickets) for line in lines if line.tickets} == came
        for line in lines:
            here = [ticket for ticket in waiting if ticket.number in line.tickets]
            assert line.items == counted.get(line.task, [0, 0, 0])[line.rank]
            assert line.queries == len(here)
            assert line.bytes == sum(ticket.input_bytes for ticket in here)
            assert line.loose == sum(ticket.items for ticket in here if ticket.urgency & 1)
            for flow in line.flows.values() if line.is_shared else ():
                own = [ticket for ticket in here if ticket.flow is flow]
                assert flow.items == sum(ticket.items for ticket in own)
                assert flow.loose == sum(ticket.items for ticket in own if ticket.urgency & 1)
                assert (flow.queries, flow.bytes) == (len(own), sum(ticket.input_bytes for ticket in own))
            if line.is_shared:
                assert all(ticket.flow in line.flows.values() for ticket in here)
                assert line.waiting == len({id(ticket.flow) for ticket in here})
        assert lines.all.items == sum(ticket.items for ticket in waiting)
        assert lines.all.bytes == sum(ticket.input_bytes for ticket in waiting)
        assert lines.all.queries == len(waiting)

    @invariant()
    def every_waiting_query_has_one_valid_place_in_its_heap(self) -> None:
        for eligibility in self.engine.queues._classes.values():
            turns = eligibility._turns
            heaps = [eligibility._heap] if turns is None else list(turns._heaps.values())
            valid = [ticket.number for heap in heaps for _, _, entry, ticket in heap if entry == ticket.entry]
            assert turns is None or turns.size == sum(len(heap) for heap in heaps)
            promised = [number for tickets in eligibility.promised.values() for number in tickets]
            assert sorted(valid) == sorted(promised)
            assert eligibility.count == len(promised)

    def teardown(self) -> None:
        """Whatever happened: time alone ends every query, and then nothing is promised to anyone."""
        if not hasattr(self, "view"):
            return
        self.engine.flush(self.now)
        self.perform()
        self.now += 100.0
        self.engine.expire(self.now)
        self.perform()
        assert len(self.ended) == len(self.tickets), "a query was lost"
        for number in list(self.batches):
            self.engine.done(number, BatchResult(outputs={}), self.now)
        self.perform()
        assert self.engine.ledger.is_settled()
        assert self.engine.queues.waiting == 0
        assert self.engine.live == 0


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
