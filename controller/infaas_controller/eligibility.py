"""One class of queries that are interchangeable apart from their deadlines, and the order in which they go.

The earliest deadline goes first. While several tenants have queries in a class they go by turns, and within each tenant
by deadline.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING

from infaas.domain.ids import InstanceId, VariantName
from infaas_controller.lines import Flow, Line

if TYPE_CHECKING:
    from infaas_controller.queues import Ticket

ClassKey = tuple[object, ...]
Entry = tuple[float, int, int, "Ticket"]
"""Deadline, number, and the entry that is valid while it is the ticket's."""

_NEVER = inf, 0
_entries = itertools.count(1)
_offers = itertools.count(1)


class EligibilityClass:
    """Queries with the same signature, outputs, admitted variants, objective, policy and priority."""

    __slots__ = (
        "_flow", "_heap", "_latest", "_turns", "allowed", "count", "is_alone", "is_bound", "key", "line", "promised",
        "rank", "task",
    )  # fmt: skip

    def __init__(
        self, key: ClassKey, line: Line, allowed: frozenset[VariantName], is_bound: bool, is_alone: bool
    ) -> None:
        self.key = key
        self.line = line
        self.task = line.task
        self.rank = line.rank
        self.allowed = allowed
        self.is_bound = is_bound
        """Its queries stay with one instance."""
        self.is_alone = is_alone
        """Each of its batches holds one query."""
        self.count = 0
        self.promised: dict[InstanceId, dict[int, Ticket]] = {}
        """Its waiting tickets by the instance they are promised to."""
        self._heap: list[Entry] = []
        self._latest = _NEVER
        """Nothing in the heap is due later: a deadline and a number."""
        self._flow: Flow | None = None
        """Whose queries the heap holds; None while it holds none, and while there are turns."""
        self._turns: Turns | None = None
        """In place of the heap while there are several tenants."""

    def push(self, ticket: Ticket) -> None:
        """An earlier entry of the same ticket, here or in another class, counts no more."""
        ticket.entry = entry = next(_entries)
        if ticket.flow is self._flow:
            here = ticket.deadline, ticket.number
            self._latest = max(self._latest, here) if self._heap else here
            heapq.heappush(self._heap, (*here, entry, ticket))
        else:
            self._push_of_another(ticket)

    def push_in_order(self, tickets: Sequence[Ticket]) -> None:
        """As `push` of each, the earliest deadline first, for tickets of one tenant."""
        heap = self._heap
        first, last = tickets[0], tickets[-1]
        if first.flow is not self._flow or (heap and (first.deadline, first.number) < self._latest):
            for ticket in tickets:
                self.push(ticket)
            return
        for ticket in tickets:  # none is before any that is there, so that each belongs at the heap's end
            ticket.entry = entry = next(_entries)
            heap.append((ticket.deadline, ticket.number, entry, ticket))
        self._latest = last.deadline, last.number

    def peek(self) -> Ticket | None:
        if self._turns is not None:
            return self._turns.peek()
        heap = self._heap
        while heap and heap[0][2] != heap[0][3].entry:
            heapq.heappop(heap)
        return heap[0][3] if heap else None

    def pops(self) -> Iterator[Ticket]:
        """Takes the waiting tickets off in their order, as far as the iteration goes. Nothing is pushed meanwhile."""
        heap, turns, pop = self._heap, self._turns, heapq.heappop
        while heap:
            _, _, entry, ticket = pop(heap)
            if entry == ticket.entry:
                yield ticket
        while turns is not None and (found := turns.peek()) is not None:
            turns.pop()
            yield found

    def restore(self) -> None:
        """Put exactly what waits into the heap."""
        self._clear()
        for tickets in self.promised.values():
            for ticket in tickets.values():
                self.push(ticket)

    def tidy(self) -> None:
        """Drop what has left from the heap when it is more than what waits: tickets hold their inputs."""
        if not self.count:
            self._clear()
        elif self._turns is not None:
            if self._turns.size > 2 * self.count + 64:
                self.restore()
            elif (only := self._turns.only) is not None:
                self._flow, self._heap = only
                self._latest = _NEVER
                self._turns = None
        elif len(self._heap) > 2 * self.count + 64:
            self._heap[:] = [entry for entry in self._heap if entry[2] == entry[3].entry]
            heapq.heapify(self._heap)

    @property
    def head_deadline(self) -> float:
        head = self.peek()
        return head.deadline if head is not None else float("inf")

    @property
    def waiting_since(self) -> float:
        head = self.peek()
        return head.query.arrived_at if head is not None else float("inf")

    @property
    def tag(self) -> float:
        """Of the tenant whose turn it is."""
        head = self.peek()
        return head.flow.tag if head is not None and head.flow is not None else 0.0

    def _push_of_another(self, ticket: Ticket) -> None:
        """Of a tenant who has nothing in the heap."""
        if ticket.flow is None:
            raise AssertionError(f"ticket {ticket.number} waits in no line")
        entry: Entry = (ticket.deadline, ticket.number, ticket.entry, ticket)
        if self._turns is None and self._flow is None:
            self._flow, self._latest = ticket.flow, (ticket.deadline, ticket.number)
            self._heap.append(entry)
            return
        if self._turns is None and self._flow is not None:
            self._turns = Turns(self._flow, self._heap)
            self._heap, self._flow = [], None
        if self._turns is not None:
            self._turns.push(ticket.flow, entry)

    def _clear(self) -> None:
        self._heap = []
        self._flow = self._turns = None


class Turns:
    """Queries of several tenants: who was served least is next, with his earliest deadline.

    Each tenant offers himself at his tag. What is popped may yet be put back, so that his next offer is only supposed
    to be right: one that has fallen behind his tag is made anew when it comes up, and one that is ahead of it when he
    pushes.
    """

    __slots__ = ("_heaps", "_offers", "_valid", "size")

    def __init__(self, flow: Flow, heap: list[Entry]) -> None:
        """Takes over the heap of the first tenant."""
        self.size = len(heap)
        """Entries, valid or not."""
        self._heaps: dict[Flow, list[Entry]] = {flow: heap}
        self._offers: list[tuple[float, int, Flow]] = []
        self._valid: dict[Flow, tuple[float, int]] = {}
        self._offer(flow, flow.tag)

    @property
    def only(self) -> tuple[Flow, list[Entry]] | None:
        """The tenant whose all that is left is, with his heap."""
        return next(iter(self._heaps.items())) if len(self._heaps) == 1 else None

    def push(self, flow: Flow, entry: Entry) -> None:
        heap = self._heaps.get(flow)
        if heap is None:
            heap = self._heaps[flow] = []
        heapq.heappush(heap, entry)
        self.size += 1
        valid = self._valid.get(flow)
        if valid is None or valid[0] > flow.tag:
            self._offer(flow, flow.tag)

    def peek(self) -> Ticket | None:
        while self._offers:
            tag, number, flow = self._offers[0]
            if self._valid.get(flow) != (tag, number):
                heapq.heappop(self._offers)
                continue
            heap = self._heaps[flow]
            while heap and heap[0][2] != heap[0][3].entry:
                heapq.heappop(heap)
                self.size -= 1
            if not heap:
                heapq.heappop(self._offers)
                del self._heaps[flow], self._valid[flow]
            elif tag < flow.tag:
                heapq.heappop(self._offers)
                self._offer(flow, flow.tag)
            else:
                return heap[0][3]
        return None

    def pop(self) -> None:
        """What `peek` has just returned."""
        tag, _, flow = heapq.heappop(self._offers)
        _, _, _, ticket = heapq.heappop(self._heaps[flow])
        self.size -= 1
        self._offer(flow, tag + ticket.items)

    def _offer(self, flow: Flow, tag: float) -> None:
        offer = tag, next(_offers)
        self._valid[flow] = offer
        heapq.heappush(self._offers, (*offer, flow))
