"""Room for one more query among those that wait: what is counted, how it is bounded, and who goes at a bound.

Three things are bounded: the items of one task, all queries, and the memory of all inputs. A query finds room by
pushing out lower priorities, lowest and newest first, and then, among its own priority, the newest of the tenant that
holds most, as long as its own tenant holds less. Else it is refused: in a flood that is the flood.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from infaas.domain.ids import TenantName
from infaas.domain.query import Code
from infaas.errors import InfaasError
from infaas_controller.decide.fair import who_yields
from infaas_controller.lanes import RANKS
from infaas_controller.lines import Held, Line, Lines, named

if TYPE_CHECKING:
    from infaas_controller.queues import Ticket

RETRY_AFTER_S = 1.0
Leaving = tuple["Ticket", InfaasError]
"""With what it is told."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait."""

    task_items: int
    """Of one task."""
    queries: int = 100_000
    bytes: int = 2**30
    """Of inputs."""


class _Bound(NamedTuple):
    """One bound, as it concerns one query."""

    limit: int
    held: int
    wanted: int
    of: Callable[[Held], int]
    of_one: Callable[[Ticket], int]
    lines: Sequence[Line]
    """What it counts."""
    words: str


class Room:
    """Reads the lines; those who leave are the caller's to end."""

    def __init__(self, lines: Lines, bounds: Bounds) -> None:
        self._lines = lines
        self._bounds = bounds

    def is_wide_for(self, tickets: Sequence[Ticket]) -> bool:
        """Whether all of them find room, whatever their task."""
        held, bounds = self._lines.all, self._bounds
        items, bytes_ = held.items, held.bytes
        for ticket in tickets:
            items += ticket.items
            bytes_ += ticket.input_bytes
        return items <= bounds.task_items and held.queries + len(tickets) <= bounds.queries and bytes_ <= bounds.bytes

    def make(self, ticket: Ticket) -> list[Leaving]:
        """Who leaves for it: itself alone, if it is to be refused."""
        leaving: dict[int, Leaving] = {}
        for bound in self._bounds_of(ticket):
            gone = sum([bound.of_one(each) for each, _ in leaving.values()])
            need = bound.held + bound.wanted - bound.limit - gone
            if need <= 0:
                continue
            found = _lower(bound, ticket, need, leaving)
            need -= sum(bound.of_one(each) for each, _ in found)
            if need > 0:
                more = _of_another(bound, ticket, need, leaving)
                if more is None:
                    return [(ticket, _refused(bound, ticket))]
                found += more
            leaving.update((each.number, (each, error)) for each, error in found)
        return list(leaving.values())

    def _bounds_of(self, ticket: Ticket) -> Iterator[_Bound]:
        lines, bounds, held = self._lines, self._bounds, self._lines.all
        of_task = lines.of_task(ticket.task)
        items = sum([line.items for line in of_task])
        yield _Bound(
            bounds.task_items, items, ticket.items, lambda one: one.items, lambda one: one.items, of_task,
            f"items that may wait for {ticket.task!r}",
        )  # fmt: skip
        if held.queries >= bounds.queries:
            yield _Bound(
                bounds.queries, held.queries, 1, lambda one: one.queries, lambda one: 1, list(lines),
                "queries that may wait in all",
            )  # fmt: skip
        if held.bytes + ticket.input_bytes > bounds.bytes:
            yield _Bound(
                bounds.bytes, held.bytes, ticket.input_bytes, lambda one: one.bytes, lambda one: one.input_bytes,
                list(lines), "bytes of inputs that may wait in all",
            )  # fmt: skip


def _lower(bound: _Bound, ticket: Ticket, need: int, leaving: Mapping[int, Leaving]) -> list[Leaving]:
    """Queries of lower priority, as many as make the room or as there are: of the lowest first, and there of who holds
    most."""
    text = f"pushed out by a {ticket.query.requirements.priority.value} query; the queue is full"
    found: list[Leaving] = []
    for rank in range(RANKS - 1, ticket.rank, -1):
        held = _held(bound, rank)
        newest = {tenant: _newest(bound, rank, tenant, leaving) for tenant in held}
        while need > 0 and held:
            most = max(held, key=held.__getitem__)
            victim = next(newest[most], None)
            if victim is None:
                del held[most]
                continue
            found.append((victim, _error(Code.EVICTED, text)))
            held[most] -= bound.of_one(victim)
            need -= bound.of_one(victim)
    return found


def _of_another(bound: _Bound, ticket: Ticket, need: int, leaving: Mapping[int, Leaving]) -> list[Leaving] | None:
    """Queries of the same priority, of the tenant that holds most. None when nobody is to make room."""
    asking, held = named(ticket.query.requirements.tenant), _held(bound, ticket.rank)
    most = who_yields(held, asking, bound.wanted, need)
    if most is None:
        return None
    text = (
        f"pushed out for tenant {asking!r}: the queue is full, and tenant {most!r} had the most in it, "
        f"{held[most]} of the {bound.limit} {bound.words}"
    )
    found: list[Leaving] = []
    for victim in _newest(bound, ticket.rank, most, leaving):
        found.append((victim, _error(Code.QUOTA, text)))
        need -= bound.of_one(victim)
        if need <= 0:
            return found
    return None


def _refused(bound: _Bound, ticket: Ticket) -> InfaasError:
    """A tenant is told what he holds when he is not alone."""
    asking, held = named(ticket.query.requirements.tenant), _held(bound, ticket.rank)
    text = f"{bound.held} of the {bound.limit} {bound.words} wait already"
    if not held.keys() - {asking}:
        return _error(Code.SATURATED, text)
    text += f", {held.get(asking, 0)} of them for tenant {asking!r}, and none of the others holds enough more to yield"
    return _error(Code.QUOTA, text)


def _error(code: Code, text: str) -> InfaasError:
    return InfaasError(text, code=code, is_retryable=True, retry_after_s=RETRY_AFTER_S)


def _held(bound: _Bound, rank: int) -> dict[TenantName, int]:
    """What each tenant has waiting at a priority."""
    found: dict[TenantName, int] = {}
    for line in bound.lines:
        if line.rank == rank and line.queries:
            for flow in line.flows.values():
                part: Held = flow if line.is_shared else line
                if part.queries:
                    found[flow.name] = found.get(flow.name, 0) + bound.of(part)
    return found


def _newest(bound: _Bound, rank: int, tenant: TenantName, leaving: Mapping[int, Leaving]) -> Iterator[Ticket]:
    """What waits of a tenant at a priority and does not leave already, the newest first."""
    lines = [reversed(line.tickets.values()) for line in bound.lines if line.rank == rank]
    for ticket in heapq.merge(*lines, key=lambda each: -each.number):
        if ticket.flow is not None and ticket.flow.name == tenant and ticket.number not in leaving:
            yield ticket
