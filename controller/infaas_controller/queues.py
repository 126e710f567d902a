"""Where queries wait: one deadline-ordered heap per eligibility class, indexed by the instances they are promised to.

Queries of a class are interchangeable apart from their deadlines, so a promise is made to a class rather than to a
query: when an instance has room it takes the class's earliest deadlines, and the promises are swapped to match.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from operator import attrgetter

import msgspec

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.query import Choice, Query
from infaas_controller.decide.candidates import Admission
from infaas_controller.decide.select import Selected
from infaas_controller.eligibility import ClassKey, EligibilityClass
from infaas_controller.lanes import Lane, urgency_of
from infaas_controller.ledger import Ledger
from infaas_controller.lines import Flow

CLASSES_KEPT = 512
"""Empty classes are kept for the next query like them, up to this many."""


class TicketState(Enum):
    WAITING = "waiting"
    SENT = "sent"
    FINISHED = "finished"


class Ticket(msgspec.Struct, eq=False):
    """One query's way through the controller. `owner` is the shell's, nothing here looks at it."""

    number: int
    query: Query
    owner: object
    deadline: float = 0.0
    items: int = 0
    input_bytes: int = 0
    urgency: int = 0
    rank: int = 0
    task: str = ""
    state: TicketState = TicketState.WAITING
    admission: Admission | None = None
    policy: str = ""
    choice: Choice | None = None
    selected: Selected | None = None
    selected_at: float = 0.0
    decided_at: float = 0.0
    decide_s: float = 0.0
    lane: Lane | None = None
    """The instance it is promised to, or runs on."""
    eligibility: EligibilityClass | None = None
    flow: Flow | None = None
    """Its tenant's part of the line that it waits in, or waited in last."""
    entry: int = 0
    """Its valid place in a heap; 0: in none."""
    batch: int = 0
    batch_items: int = 0
    attempts: int = 0
    deaths: int = 0
    """How often its instance died while running it, or an input like it. From the first on it runs alone, in an
    instance that has a process of its own."""
    raised: bool = False
    """Whether the model raised on a whole batch that it was in: it is then tried alone, once."""
    digest: bytes | None = None
    """Of its inputs, once somebody had to know."""
    losses: int = 0
    """How often its instance was lost before it was known to run there."""
    excluded: frozenset[InstanceId] = frozenset()
    """Instances it is not given to again."""
    late_at: frozenset[InstanceId] = frozenset()
    """Those of them that only had too much to do before it."""
    is_cold: bool = False
    queue_s: float = 0.0
    run_s: float = 0.0

    def __post_init__(self) -> None:
        query = self.query
        self.deadline = query.deadline
        self.items = query.items
        self.selected_at = query.arrived_at
        self.urgency = urgency = urgency_of(query.requirements)
        self.rank = urgency // 2
        total = 0
        for tensor in query.inputs:
            data = tensor.data
            total += data.nbytes if isinstance(data, memoryview) else len(data)
        self.input_bytes = total


by_deadline = attrgetter("deadline", "number")
"""The order of tickets: the earliest deadline first, of equal ones who came first."""


class Queues:
    """All waiting queries. Keeps the ledger's reservations equal to what waits: every way in reserves, every way out
    releases."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._classes: dict[ClassKey, EligibilityClass] = {}
        self._by_lane: dict[InstanceId, dict[ClassKey, EligibilityClass]] = {}
        self._by_variant: dict[VariantName, dict[ClassKey, EligibilityClass]] = {}
        self.lines = ledger.lines

    def add(self, ticket: Ticket, lane: Lane, *, is_bound: bool, is_fallback: bool, is_alone: bool) -> None:
        """Let a ticket wait for `lane`, which must have been chosen for it."""
        eligibility = self._class_of(ticket, lane, is_bound, is_fallback, is_alone)
        line = eligibility.line
        ticket.eligibility = eligibility
        ticket.flow = flow = line.flow_of(ticket.query.requirements.tenant)
        ticket.state = TicketState.WAITING
        line.came(flow, ticket.items if ticket.urgency & 1 else 0, ticket.items, ticket.input_bytes, 1)
        line.tickets[ticket.number] = ticket
        eligibility.push(ticket)
        eligibility.count += 1
        self._promise(ticket, eligibility, lane)

    def add_like(self, tickets: Sequence[Ticket], eligibility: EligibilityClass, lane: Lane) -> None:
        """Let tickets with the same requirements wait with others of their class, of whom one at least is promised to
        this lane. They come in the order of their deadlines."""
        line, promised, urgency = eligibility.line, eligibility.promised[lane.id], tickets[0].urgency
        flow, arrivals = line.flow_of(tickets[0].query.requirements.tenant), line.tickets
        items = bytes_ = 0
        for ticket in tickets:
            items += ticket.items
            bytes_ += ticket.input_bytes
            ticket.eligibility = eligibility
            ticket.flow = flow
            ticket.state = TicketState.WAITING
            ticket.lane = lane
            arrivals[ticket.number] = promised[ticket.number] = ticket
        eligibility.push_in_order(tickets)
        line.came(flow, items if urgency & 1 else 0, items, bytes_, len(tickets))
        eligibility.count += len(tickets)
        self._ledger.reserve(lane, urgency, items)

    def remove(self, ticket: Ticket) -> None:
        """Take a waiting ticket out, wherever it stands; it keeps no promise. The class says under which task it was
        counted: what its handle names may have changed since."""
        eligibility = _class(ticket)
        line = eligibility.line
        self._withdraw(ticket, eligibility)
        eligibility.count -= 1
        line.left(_flow(ticket), ticket.items if ticket.urgency & 1 else 0, ticket.items, ticket.input_bytes, 1)
        del line.tickets[ticket.number]
        ticket.eligibility = None
        ticket.entry = 0
        eligibility.tidy()

    def take(self, ticket: Ticket, lane: Lane) -> None:
        """Remove a ticket that goes to `lane`. If it was promised elsewhere, one that was promised here goes there
        instead."""
        eligibility = _class(ticket)
        elsewhere = _lane(ticket)
        if elsewhere is not lane:
            here = eligibility.promised.get(lane.id, {}).values()
            other = next((each for each in reversed(here) if elsewhere.id not in each.excluded), None)
            if other is not None:
                self._withdraw(other, eligibility)
                self._promise(other, eligibility, elsewhere)
            self._withdraw(ticket, eligibility)
            self._promise(ticket, eligibility, lane)
        eligibility.line.serve(_flow(ticket), ticket.items)
        self.remove(ticket)

    def take_all(self, tickets: Sequence[Ticket], lane: Lane) -> None:
        """As `take` of each, for tickets of one class."""
        eligibility = _class(tickets[0])
        flow = _flow(tickets[0])
        for ticket in tickets:
            if ticket.lane is not lane or ticket.flow is not flow:
                for each in tickets:
                    self.take(each, lane)
                return
        promised, line = eligibility.promised[lane.id], eligibility.line
        arrivals = line.tickets
        by_urgency: dict[int, int] = {}
        items = bytes_ = 0
        for ticket in tickets:
            bytes_ += ticket.input_bytes
            number = ticket.number
            del promised[number]
            del arrivals[number]
            ticket.eligibility = None
            ticket.entry = 0
            items += ticket.items
            by_urgency[ticket.urgency] = by_urgency.get(ticket.urgency, 0) + ticket.items
        eligibility.count -= len(tickets)
        line.serve(flow, items)
        line.left(flow, by_urgency.get(2 * line.rank + 1, 0), items, bytes_, len(tickets))
        if not promised:
            self._break_promise(eligibility, lane)
        for urgency, released in by_urgency.items():
            self._ledger.release(lane, urgency, released)
        eligibility.tidy()

    def move(self, ticket: Ticket, lane: Lane) -> None:
        """Promise a waiting ticket to another instance."""
        eligibility = _class(ticket)
        self._withdraw(ticket, eligibility)
        self._promise(ticket, eligibility, lane)

    def put_back(self, ticket: Ticket) -> None:
        """A ticket that was popped from its class's heap but goes on waiting."""
        _class(ticket).push(ticket)

    def restore(self) -> None:
        """After a fault: what was popped from any heap and still waits goes back."""
        for eligibility in self._classes.values():
            eligibility.restore()

    def classes_for(self, lane: Lane) -> list[EligibilityClass]:
        """Those that hold a promise of this instance."""
        return list(self._by_lane.get(lane.id, {}).values())

    def is_alone_at(self, eligibility: EligibilityClass, lane: Lane) -> bool:
        """Whether all that is promised to this instance is of one class."""
        classes = self._by_lane.get(lane.id, {})
        return len(classes) == 1 and eligibility.key in classes

    def classes_admitting(self, variant: VariantName) -> list[EligibilityClass]:
        """Those with waiting queries that may run on this variant and are not bound."""
        found = self._by_variant.get(variant)
        return [each for each in found.values() if each.count and not each.is_bound] if found else []

    def promised_to(self, lane: Lane) -> list[Ticket]:
        return [ticket for each in self.classes_for(lane) for ticket in each.promised[lane.id].values()]

    def lanes(self) -> list[Lane]:
        """Instances that hold a promise."""
        found = [next(iter(classes.values())).promised[lane] for lane, classes in self._by_lane.items()]
        return [_lane(next(iter(tickets.values()))) for tickets in found]

    def tasks(self) -> tuple[str, ...]:
        """Those that have had queries."""
        return tuple(dict.fromkeys(line.task for line in self.lines))

    def items(self, task: str) -> int:
        """Items that wait, of one task."""
        return sum([line.items for line in self.lines.of_task(task)])

    @property
    def waiting(self) -> int:
        return sum(each.count for each in self._classes.values())

    # -- below: bookkeeping ------------------------------------------------------------------------------------------

    def _class_of(
        self, ticket: Ticket, lane: Lane, is_bound: bool, is_fallback: bool, is_alone: bool
    ) -> EligibilityClass:
        admission, query = ticket.admission, ticket.query
        if admission is None:
            raise AssertionError(f"ticket {ticket.number} waits without an admission")
        key: ClassKey = (
            ticket.task, ticket.rank, admission.key, query.signature, query.outputs, query.requirements.policy,
            lane.id if is_bound else None, lane.variant if is_fallback else None, ticket.number if is_alone else None,
        )  # fmt: skip
        found = self._classes.get(key)
        if found is None:
            if len(self._classes) >= CLASSES_KEPT:
                self._forget_empty()
            only_here = is_bound or is_fallback
            allowed = frozenset([lane.variant] if only_here else [v.name for v in admission.variants])
            line = self.lines.of(ticket.task, ticket.rank)
            found = EligibilityClass(key, line, allowed, is_bound, is_alone)
            self._classes[key] = found
            for variant in allowed:
                self._by_variant.setdefault(variant, {})[key] = found
        return found

    def _forget_empty(self) -> None:
        for key in [key for key, each in self._classes.items() if not each.count]:
            for variant in self._classes.pop(key).allowed:
                peers = self._by_variant[variant]
                del peers[key]
                if not peers:
                    del self._by_variant[variant]

    def _promise(self, ticket: Ticket, eligibility: EligibilityClass, lane: Lane) -> None:
        ticket.lane = lane
        eligibility.promised.setdefault(lane.id, {})[ticket.number] = ticket
        here = self._by_lane.setdefault(lane.id, {})
        if eligibility.key not in here:
            here[eligibility.key] = eligibility
            self._ledger.class_came(lane, eligibility.rank)
        self._ledger.reserve(lane, ticket.urgency, ticket.items)

    def _withdraw(self, ticket: Ticket, eligibility: EligibilityClass) -> None:
        lane = _lane(ticket)
        mine = eligibility.promised[lane.id]
        del mine[ticket.number]
        if not mine:
            self._break_promise(eligibility, lane)
        self._ledger.release(lane, ticket.urgency, ticket.items)

    def _break_promise(self, eligibility: EligibilityClass, lane: Lane) -> None:
        """The last of a class's queries that were promised to this instance has left."""
        del eligibility.promised[lane.id]
        peers = self._by_lane[lane.id]
        del peers[eligibility.key]
        self._ledger.class_left(lane, eligibility.rank)
        if not peers:
            del self._by_lane[lane.id]


def _class(ticket: Ticket) -> EligibilityClass:
    if ticket.eligibility is None:
        raise AssertionError(f"ticket {ticket.number} does not wait")
    return ticket.eligibility


def _flow(ticket: Ticket) -> Flow:
    if ticket.flow is None:
        raise AssertionError(f"ticket {ticket.number} waits in no line")
    return ticket.flow


def _lane(ticket: Ticket) -> Lane:
    if ticket.lane is None:
        raise AssertionError(f"ticket {ticket.number} is promised to no instance")
    return ticket.lane
