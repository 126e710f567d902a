"""Decisions on the usual answers of a batch are kept as one, and read as if each had been kept by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infaas_controller.decide.candidates import Admissions
from infaas_controller.decide.policies.slo import SloPolicy
from infaas_controller.decide.select import Selected, select_traced
from infaas_controller.decisions import Decisions
from infaas_controller.kept import Trace
from infaas_controller.ledger import Ledger
from infaas_controller.ports import Outcome, Ran
from infaas_controller.queues import Ticket

from infaas.domain.ids import DecisionId, InstanceId, VariantName, WorkerId
from infaas.domain.query import ANSWERED, Choice, Decision, Priority, Query, TraceContext
from infaas.testing.builders import a_query, a_variant, a_view, a_worker, an_instance
from infaas.testing.clock import ManualClock

RAN = Ran(VariantName("v1"), "m1", 3, WorkerId("w1"), InstanceId("i1"), 0.0015)
GONE = Ran(None, None, None, WorkerId("w1"), InstanceId("i1"), 0.0015)
NOW = 1_000.5
OTHER_TRACE = TraceContext("00-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-b7ad6b7169203331-01")
TRACE = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


@dataclass(frozen=True)
class Group:
    """Queries that are decided on together: what they have in common."""

    query: Query
    selected: Selected
    choice: Choice
    policy: str


@cache
def group(number: int) -> Group:
    """One of some, each unlike the others."""
    made = [a_variant(f"v{n}", cost=1.0 / n) for n in range(1, 2 + number % 3)]
    instances = [an_instance(f"i{n.name}", variant=n.name) for n in made]
    view = a_view(variants=made, workers=[a_worker(instances=instances)])
    query = a_query(
        ("digits", "m1")[number % 2], latency_ms=700.0 + 100 * number, accuracy_min=0.0, items=1 + number % 3,
        priority=list(Priority)[number % 3], tenant=(None, "a", "b")[number % 3],
    )  # fmt: skip
    ledger = Ledger()
    ledger.sync(view, 1_000.0)
    found = select_traced(query, Admissions().of(query, view), ledger, SloPolicy(), 1_000.0, 0.5)
    assert isinstance(found.outcome, Choice)
    return Group(query, found, found.outcome, ("slo", "cost")[number % 2])


def a_ticket(number: int, seed: int, batch_items: int) -> Ticket:
    """An answered query like any other."""
    rng = random.Random(seed)
    of = group(rng.choice([0, 0, 0, 1, 2, 3, 4]))
    at = 1_000.0 + rng.random() / 10
    query = of.query._replace(
        id=f"q{seed % 7}", arrived_at=at, deadline=at + (of.query.requirements.latency_s or 0.0),
        trace=rng.choice([None, None, TRACE]),
    )  # fmt: skip
    ticket = Ticket(number, query, None)
    ticket.attempts, ticket.batch_items, ticket.policy = 1, batch_items, of.policy
    ticket.selected, ticket.admission = of.selected, of.selected.admission
    # Who joins a batch shares the choice of the first; it is another than that of who was chosen for alone.
    ticket.choice = of.choice if rng.randrange(3) else of.choice._replace(predicted_s=rng.random())
    ticket.decided_at, ticket.decide_s = at + 1e-5, rng.random() / 1e4
    ticket.selected_at = at + rng.random() / 100
    ticket.queue_s, ticket.run_s = rng.random() / 10, RAN.run_s
    return ticket


def record_one(decisions: Decisions, ticket: Ticket, id: DecisionId, ran: Ran, clock: ManualClock) -> None:
    """As an answer that is given by itself."""
    outcome = Outcome(
        id, ran.variant, ran.model, ran.version, ran.worker, ran.instance, ticket.attempts, ticket.decided_at,
        ticket.decide_s, ticket.queue_s, ticket.run_s, clock.now() - ticket.query.arrived_at, slo_met=True,
    )  # fmt: skip
    decisions.record(ticket, outcome, ANSWERED, "" if ticket.choice is None else ticket.choice.reason, clock.wall())


def refuse(decisions: Decisions, number: int, clock: ManualClock) -> DecisionId:
    ticket, id = Ticket(number, a_query(id=f"q{number % 7}"), None), decisions.next_id()
    decisions.record(ticket, Outcome(id), "saturated", "the queue is full", clock.wall())
    return id


@dataclass
class Side:
    """Decisions with everybody who listens."""

    is_together: bool
    memory: int
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW))
    seen: list[Decision] = field(default_factory=list)
    some: list[Decision] = field(default_factory=list)
    usual: list[Decision] = field(default_factory=list)
    traced: list[tuple[Decision, int | None]] = field(default_factory=list)
    asked: list[tuple[str, str, int, bool]] = field(default_factory=list)
    predicted: list[tuple[float, float]] = field(default_factory=list)
    ids: list[DecisionId] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.decisions = Decisions("c", self.clock, self.memory)
        self.decisions.on_decision(self.seen.append)
        self.decisions.on_decision(self.some.append, self._take)
        self.decisions.on_decision(self.usual.append, self._take_every_other(), self._take_of_usual)
        self.decisions.on_traced(lambda decision, trace: self.traced.append((decision, _size(trace))))
        self.decisions.on_prediction(lambda *told: self.predicted.extend(zip(*told, strict=True)))
        self._answers = 0

    def _take(self, code: str, handle: str, attempts: int, is_fallback: bool) -> bool:
        self.asked.append((code, handle, attempts, is_fallback))
        return len(self.asked) % 3 == 0

    def _take_every_other(self) -> Callable[[str, str, int, bool], bool]:
        def take(code: str, handle: str, attempts: int, is_fallback: bool) -> bool:
            return code != ANSWERED or bool(self._take_of_usual(1))

        return take

    def _take_of_usual(self, count: int) -> Sequence[int]:
        begin, self._answers = self._answers, self._answers + count
        return [place for place in range(count) if (begin + place) % 2]

    def batch(self, tickets: Sequence[Ticket], skipped: set[int], ran: Ran) -> None:
        prefix, first = self.decisions.take_ids(len(tickets))
        kept = [place for place in range(len(tickets)) if place not in skipped]
        if self.is_together and kept:
            self.decisions.record_together(
                [tickets[place] for place in kept], [first + place for place in kept], ran, self.clock.now(),
                self.clock.wall(),
            )  # fmt: skip
        for place in kept:
            id = DecisionId(f"{prefix}{first + place}")
            self.ids.append(id)
            if not self.is_together:
                record_one(self.decisions, tickets[place], id, ran, self.clock)
        for place in sorted(skipped):
            self.ids.append(self.decisions.next_id())
            record_one(self.decisions, tickets[place], self.ids[-1], ran, self.clock)

    def refuse(self, number: int) -> None:
        self.ids.append(refuse(self.decisions, number, self.clock))


def _size(trace: Trace | None) -> int | None:
    return None if trace is None else len(trace.candidates())


steps = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 9), st.sets(st.integers(0, 8), max_size=3), st.booleans(), st.integers(0, 10**6)),
        st.integers(0, 20),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(steps, st.integers(1, 12))
def test_what_is_kept_together_reads_as_what_is_kept_one_by_one(
    given_steps: list[tuple[int, set[int], bool, int] | int], memory: int
) -> None:
    together, apart = Side(True, memory), Side(False, memory)
    for step in given_steps:
        for side in (together, apart):
            side.clock.advance(0.001)
            if isinstance(step, int):
                side.refuse(step)
                continue
            count, skipped, is_gone, seed = step
            tickets = [a_ticket(n, seed + n, count) for n in range(count)]
            side.batch(tickets, {place for place in skipped if place < count}, GONE if is_gone else RAN)
    assert together.ids == apart.ids
    for limit in (1, 3, 100):
        assert list(together.decisions.recent(limit)) == list(apart.decisions.recent(limit))
    for key in (
        *together.ids,
        *(f"q{n}" for n in range(7)),
        "d-other-1",
        f"{together.ids[-1]}9" if together.ids else "",
    ):
        assert together.decisions.get(key) == apart.decisions.get(key), key
    answered = [one for one in together.decisions.recent(1_000) if one.outcome == ANSWERED]
    told = [one for one in together.seen if one.outcome == ANSWERED]
    assert len(answered) == min(memory, len(told))
    assert [one.id for one in together.decisions.recent(1_000)] == sorted(
        (one.id for one in together.decisions.recent(1_000)), key=_number, reverse=True
    )
    assert together.seen == apart.seen
    assert together.usual == apart.usual
    assert together.some == apart.some
    assert together.traced == apart.traced
    assert together.asked == apart.asked
    assert together.predicted == apart.predicted


def _number(id: str) -> int:
    return int(id.rsplit("-", 1)[1])


@pytest.mark.parametrize("memory", [1, 4, 5, 6, 9, 10, 11])
def test_the_memory_is_bounded_exactly_also_where_it_cuts_a_batch(memory: int) -> None:
    side = Side(True, memory)
    side.batch([a_ticket(n, n, 5) for n in range(5)], set(), RAN)
    side.batch([a_ticket(n, n, 5) for n in range(5, 10)], set(), RAN)
    kept = [one.id for one in side.decisions.recent(100)]
    assert kept == side.ids[::-1][:memory]
    assert [id for id in side.ids if side.decisions.get(id) is not None] == side.ids[-memory:]


def test_a_batch_larger_than_the_memory_leaves_its_newest() -> None:
    side = Side(True, 3)
    side.batch([a_ticket(n, n, 9) for n in range(9)], set(), RAN)
    assert [one.id for one in side.decisions.recent(100)] == side.ids[:-4:-1]
    side.refuse(1)
    side.batch([a_ticket(n, n, 1) for n in range(1)], set(), RAN)
    assert [one.id for one in side.decisions.recent(100)] == side.ids[:-5:-1]


def test_refusals_between_batches_do_not_hide_answers_nor_answers_refusals() -> None:
    side = Side(True, 100)
    for number in range(20):
        side.batch([a_ticket(n, n, 3) for n in range(3)], {1} if number % 2 else set(), RAN)
        side.refuse(number)
    assert [one.id for one in side.decisions.recent(1_000)] == sorted(side.ids, key=_number, reverse=True)
    found = [side.decisions.get(id) for id in side.ids]
    assert [one.id for one in found if one is not None] == side.ids


def test_ids_that_were_taken_for_nobody_are_given_to_the_next() -> None:
    decisions = Decisions("c", ManualClock(), 10)
    prefix, first = decisions.take_ids(0)
    assert decisions.next_id() == f"{prefix}{first}"
    prefix, first = decisions.take_ids(3)
    assert decisions.next_id() == f"{prefix}{first + 3}"


def test_a_trace_is_its_own_querys_whoever_was_decided_on_with_it() -> None:
    tickets = []
    for number, trace in enumerate((None, TRACE, None, OTHER_TRACE, OTHER_TRACE, None)):
        ticket = a_ticket(number, 0, 6)
        ticket.query = ticket.query._replace(trace=trace)
        ticket.choice = tickets[0].choice if tickets else ticket.choice
        tickets.append(ticket)
    assert len({id(ticket.selected) for ticket in tickets}) == 1
    side = Side(True, 10)
    side.batch(tickets, set(), RAN)
    found = [decision.trace_id for id in side.ids if (decision := side.decisions.get(id)) is not None]
    wanted = [None if ticket.query.trace is None else ticket.query.trace.trace_id for ticket in tickets]
    assert found == wanted
    assert [decision.trace_id for decision in side.seen] == wanted


def test_how_many_were_told_a_refusal_is_noted_between_batches_too() -> None:
    side = Side(True, 10)
    side.refuse(1)
    refused = side.ids[-1]
    side.batch([a_ticket(n, n, 2) for n in range(2)], set(), RAN)
    side.decisions.note_alike(refused, 4)
    side.decisions.note_alike(side.ids[-1], 4)
    assert [found.alike for id in side.ids if (found := side.decisions.get(id)) is not None] == [4, 0, 0]
