"""Where queries wait: one deadline-ordered heap per eligibility class, indexed by the instances they are promised to.

Queries of a class are interchangeable apart from their deadlines, so a promise is made to a class rather than to a
query: when an instance has room it takes the class's earliest deadlines, and the promises are swapped to match.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from enum import Enum

import msgspec

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.query import Choice, Query
from infaas_controller.decide.candidates import Admission
from infaas_controller.decide.select import Selected
from infaas_controller.lanes import RANKS, Lane, urgency_of
from infaas_controller.ledger import Ledger

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
        for tensor in query.inputs:
            data = tensor.data
            self.input_bytes += data.nbytes if isinstance(data, memoryview) else len(data)


ClassKey = tuple[object, ...]
_entries = itertools.count(1)


class EligibilityClass:
    """Queries with the same signature, outputs, admitted variants, objective, policy and priority."""

    __slots__ = ("_heap", "allowed", "count", "is_alone", "is_bound", "key", "promised", "rank", "task")

    def __init__(
        self, key: ClassKey, task: str, rank: int, allowed: frozenset[VariantName], is_bound: bool, is_alone: bool
    ) -> None:
        self.key = key
        self.task = task
        self.rank = rank
        self.allowed = allowed
        self.is_bound = is_bound
        """Its queries stay with one instance."""
        self.is_alone = is_alone
        """Each of its batches holds one query."""
        self.count = 0
        self.promised: dict[InstanceId, dict[int, Ticket]] = {}
        """Its waiting tickets by the instance they are promised to."""
        self._heap: list[tuple[float, int, int, Ticket]] = []

    def push(self, ticket: Ticket) -> None:
        """An earlier entry of the same ticket, here or in another class, counts no more."""
        ticket.entry = next(_entries)
        heapq.heappush(self._heap, (ticket.deadline, ticket.number, ticket.entry, ticket))

    def peek(self) -> Ticket | None:
        heap = self._heap
        while heap and heap[0][2] != heap[0][3].entry:
            heapq.heappop(heap)
        return heap[0][3] if heap else None

    def pops(self) -> Iterator[Ticket]:
        """Takes the waiting tickets off, earliest deadline first, as far as the iteration goes."""
        while (ticket := self.peek()) is not None:
            heapq.heappop(self._heap)
            yield ticket

    def restore(self) -> None:
        """Put exactly what waits into the heap."""
        self._heap.clear()
        for tickets in self.promised.values():
            for ticket in tickets.values():
                self.push(ticket)

    def tidy(self) -> None:
        """Drop what has left from the heap when it is more than what waits: tickets hold their inputs."""
        if not self.count:
            self._heap.clear()
        elif len(self._heap) > 2 * self.count + 64:
            self._heap = [entry for entry in self._heap if entry[2] == entry[3].entry]
            heapq.heapify(self._heap)

    @property
    def head_deadline(self) -> float:
        head = self.peek()
        return head.deadline if head is not None else float("inf")

    @property
    def waiting_since(self) -> float:
        head = self.peek()
        return head.query.arrived_at if head is not None else float("inf")


class Queues:
    """All waiting queries. Keeps the ledger's reservations equal to what waits: every way in reserves, every way out
    releases."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._classes: dict[ClassKey, EligibilityClass] = {}
        self._by_lane: dict[InstanceId, dict[ClassKey, EligibilityClass]] = {}
        self._by_variant: dict[VariantName, dict[ClassKey, EligibilityClass]] = {}
        self._items: dict[str, list[int]] = {}
        self._arrivals: dict[tuple[str, int], dict[int, Ticket]] = {}
        """What waits, by ticket number in the order it came, per task and rank: for eviction."""

    def add(self, ticket: Ticket, lane: Lane, *, is_bound: bool, is_fallback: bool, is_alone: bool) -> None:
        """Let a ticket wait for `lane`, which must have been chosen for it."""
        eligibility = self._class_of(ticket, lane, is_bound, is_fallback, is_alone)
        ticket.eligibility = eligibility
        ticket.state = TicketState.WAITING
        eligibility.push(ticket)
        eligibility.count += 1
        self._count(eligibility, ticket.items)
        self._arrivals.setdefault((eligibility.task, eligibility.rank), {})[ticket.number] = ticket
        self._promise(ticket, eligibility, lane)

    def add_like(self, tickets: Sequence[Ticket], eligibility: EligibilityClass, lane: Lane) -> None:
        """Let tickets wait with others of their class, of whom one at least is promised to this lane."""
        arrivals = self._arrivals[eligibility.task, eligibility.rank]
        promised = eligibility.promised[lane.id]
        items = 0
        for ticket in tickets:
            ticket.eligibility = eligibility
            ticket.state = TicketState.WAITING
            ticket.lane = lane
            eligibility.push(ticket)
            arrivals[ticket.number] = promised[ticket.number] = ticket
            items += ticket.items
        eligibility.count += len(tickets)
        self._count(eligibility, items)
        self._ledger.reserve(lane, tickets[0].urgency, items)

    def remove(self, ticket: Ticket) -> None:
        """Take a waiting ticket out, wherever it stands; it keeps no promise. The class says under which task it was
        counted: what its handle names may have changed since."""
        eligibility = _class(ticket)
        self._withdraw(ticket, eligibility)
        eligibility.count -= 1
        self._count(eligibility, -ticket.items)
        ticket.eligibility = None
        ticket.entry = 0
        key = eligibility.task, eligibility.rank
        arrivals = self._arrivals[key]
        del arrivals[ticket.number]
        if not arrivals:
            del self._arrivals[key]
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
        self.remove(ticket)

    def take_all(self, tickets: Sequence[Ticket], lane: Lane) -> None:
        """As `take` of each, for tickets of one class."""
        eligibility = _class(tickets[0])
        if any(ticket.lane is not lane for ticket in tickets):
            for ticket in tickets:
                self.take(ticket, lane)
            return
        promised = eligibility.promised[lane.id]
        key = eligibility.task, eligibility.rank
        arrivals = self._arrivals[key]
        by_urgency: dict[int, int] = {}
        items = 0
        for ticket in tickets:
            number = ticket.number
            del promised[number]
            del arrivals[number]
            ticket.eligibility = None
            ticket.entry = 0
            items += ticket.items
            by_urgency[ticket.urgency] = by_urgency.get(ticket.urgency, 0) + ticket.items
        eligibility.count -= len(tickets)
        self._count(eligibility, -items)
        if not promised:
            self._break_promise(eligibility, lane)
        for urgency, released in by_urgency.items():
            self._ledger.release(lane, urgency, released)
        if not arrivals:
            del self._arrivals[key]
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
        return tuple(self._items)

    def items(self, task: str) -> int:
        """Items that wait, of one task."""
        return sum(self._items.get(task, ()))

    @property
    def all_items(self) -> int:
        """Items that wait, of all tasks."""
        return sum([sum(ranks) for ranks in self._items.values()])

    def victims(self, task: str, rank: int, items: int) -> list[Ticket]:
        """Waiting tickets of lower priority whose leaving makes room for `items`: lowest first, newest first. Empty
        when there is not enough of them."""
        chosen: list[Ticket] = []
        for lower in range(RANKS - 1, rank, -1):
            for ticket in reversed(self._arrivals.get((task, lower), {}).values()):
                chosen.append(ticket)
                items -= ticket.items
                if items <= 0:
                    return chosen
        return []

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
            found = EligibilityClass(key, ticket.task, ticket.rank, allowed, is_bound, is_alone)
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

    def _count(self, eligibility: EligibilityClass, items: int) -> None:
        self._items.setdefault(eligibility.task, [0] * RANKS)[eligibility.rank] += items


def _class(ticket: Ticket) -> EligibilityClass:
    if ticket.eligibility is None:
        raise AssertionError(f"ticket {ticket.number} does not wait")
    return ticket.eligibility


def _lane(ticket: Ticket) -> Lane:
    if ticket.lane is None:
        raise AssertionError(f"ticket {ticket.number} is promised to no instance")
    return ticket.lane
