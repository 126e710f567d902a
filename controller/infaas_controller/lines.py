"""What waits for one task at one priority, and how much of it is each tenant's.

A line counts what waits and remembers what its tenants were served; the rules are `decide.fair`'s. While all of it is
one tenant's, nothing is kept of him but that he is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from infaas.domain.ids import TenantName
from infaas_controller.decide.fair import FORGOTTEN_AFTER_ITEMS, faded, items_before, joined

if TYPE_CHECKING:
    from infaas_controller.queues import Ticket

FLOWS_KEPT = 256
"""Tenants that one line tells apart; those that come when there are so many share one flow."""
OTHERS = TenantName("(others)")
UNNAMED = TenantName("(unnamed)")
"""How those are shown who do not say whose they are. No caller can have either name."""


def named(tenant: TenantName | None) -> TenantName:
    return UNNAMED if tenant is None else tenant


class Held:
    """What waits in all, and the memory that its inputs take."""

    __slots__ = ("bytes", "items", "queries")

    def __init__(self) -> None:
        self.queries = 0
        self.items = 0
        self.bytes = 0


class Flow(Held):
    """One tenant's part of a line. Counted while the line has others as well."""

    __slots__ = ("is_idle", "loose", "recent", "seen", "tag", "tenant")

    def __init__(self, tenant: TenantName | None, tag: float, served: float) -> None:
        super().__init__()
        self.tenant = tenant
        self.tag = tag
        self.loose = 0
        """Items without a latency objective."""
        self.recent = 0.0
        """Items that it was served, fading; as of when the line had served `seen`."""
        self.seen = served
        self.is_idle = False
        """Whether it stands among those that may be forgotten."""

    @property
    def name(self) -> TenantName:
        return named(self.tenant)


class Line(Held):
    """`tickets` are all that wait here, by number, in the order they came. Its flows differ from one another as long as
    more than one of them has waited or been served lately."""

    __slots__ = (
        "_all", "_idle", "_served", "flows", "loose", "rank", "recent", "task", "tickets", "virtual", "waiting",
    )  # fmt: skip

    def __init__(self, task: str, rank: int, everything: Held) -> None:
        super().__init__()
        self.task = task
        self.rank = rank
        self.loose = 0
        self.tickets: dict[int, Ticket] = {}
        self.flows: dict[TenantName | None, Flow] = {}
        self.waiting = 0
        """Flows that have something waiting; kept while there are several."""
        self.virtual = 0.0
        self.recent = 0.0
        self._all = everything
        self._served = 0.0
        self._idle: deque[tuple[float, Flow]] = deque()
        """With what the line had served when each became idle."""

    @property
    def is_shared(self) -> bool:
        return len(self.flows) > 1

    @property
    def tenants(self) -> int:
        """Those that have something waiting."""
        return self.waiting if len(self.flows) > 1 else int(self.items > 0)

    def flow_of(self, tenant: TenantName | None) -> Flow:
        return self._known(tenant) or self._join(tenant if len(self.flows) < FLOWS_KEPT else OTHERS)

    def came(self, flow: Flow, loose: int, items: int, bytes_: int, queries: int) -> None:
        """`loose` are those of the items that have no latency objective."""
        if len(self.flows) > 1:
            if not flow.items:
                flow.tag = joined(flow.tag, self.virtual)
                self.waiting += 1
            flow.loose += loose
            flow.items += items
            flow.bytes += bytes_
            flow.queries += queries
        self.loose += loose
        self.items += items
        self.bytes += bytes_
        self.queries += queries
        total = self._all
        total.items += items
        total.bytes += bytes_
        total.queries += queries

    def left(self, flow: Flow, loose: int, items: int, bytes_: int, queries: int) -> None:
        if len(self.flows) > 1:
            flow.loose -= loose
            flow.items -= items
            flow.bytes -= bytes_
            flow.queries -= queries
            if not flow.items:
                self.waiting -= 1
                self._note_idle(flow)
        self.loose -= loose
        self.items -= items
        self.bytes -= bytes_
        self.queries -= queries
        total = self._all
        total.items -= items
        total.bytes -= bytes_
        total.queries -= queries

    def serve(self, flow: Flow, items: int) -> None:
        """So many items of a tenant go to an instance."""
        if len(self.flows) <= 1:
            return
        self.virtual = max(self.virtual, flow.tag)
        flow.tag += items
        self._served += items
        self.recent = faded(self.recent, items) + items
        flow.recent = faded(flow.recent, self._served - flow.seen) + items
        flow.seen = self._served
        self._forget()

    def part(self, tenant: TenantName | None, is_loose: bool, items: int) -> float | None:
        """Of what waits here, how much is served before `items` more of a tenant; above 1 when what will come overtakes
        it. None: all of it that is as urgent, by deadline, because there is nobody to share with."""
        flow = self._known(tenant)
        if not self.items or (flow is not None and len(self.flows) == 1):
            return None
        if flow is None:
            own = own_all = 0
            pace = behind = 0.0
        else:
            own_all = flow.items
            own = own_all if is_loose else own_all - flow.loose
            pace = self.pace_of(flow)
            behind = self.virtual - joined(flow.tag, self.virtual)
        others = self.tenants - int(own_all > 0)
        before = items_before(own, items, self.items - own_all, others, pace, len(self.flows), max(0.0, behind))
        return before / self.items

    def pace_of(self, flow: Flow) -> float:
        """A tenant's part of what was served lately; 0 when nothing is known."""
        if not self.recent:
            return 0.0
        return faded(flow.recent, self._served - flow.seen) / self.recent

    # -- below: who is here ------------------------------------------------------------------------------------------

    def _known(self, tenant: TenantName | None) -> Flow | None:
        """Its flow; that of all others when it came too late for one of its own."""
        flow = self.flows.get(tenant)
        return self.flows.get(OTHERS) if flow is None and len(self.flows) >= FLOWS_KEPT else flow

    def _join(self, tenant: TenantName | None) -> Flow:
        flows = self.flows
        if len(flows) == 1:
            self._begin_to_share(next(iter(flows.values())))
        found = flows[tenant] = Flow(tenant, self.virtual, self._served)
        if len(flows) > 1:
            self._note_idle(found)
        return found

    def _begin_to_share(self, sole: Flow) -> None:
        """All that waits is the only tenant's."""
        sole.queries, sole.items, sole.bytes, sole.loose = self.queries, self.items, self.bytes, self.loose
        self.waiting = int(self.items > 0)
        sole.tag = self.virtual
        sole.recent = self.recent = 0.0
        if not sole.items:
            self._note_idle(sole)

    def _note_idle(self, flow: Flow) -> None:
        if not flow.is_idle:
            flow.is_idle = True
            self._idle.append((self._served, flow))

    def _forget(self) -> None:
        while self._idle and self._served - self._idle[0][0] >= FORGOTTEN_AFTER_ITEMS:
            _, flow = self._idle.popleft()
            flow.is_idle = False
            if flow.items:
                continue
            if flow.tag > self.virtual or self._served - flow.seen < FORGOTTEN_AFTER_ITEMS:
                self._note_idle(flow)
            elif len(self.flows) > 1:
                del self.flows[flow.tenant]


class Lines:
    """All lines, and what waits in all of them together."""

    def __init__(self) -> None:
        self.all = Held()
        self._lines: dict[tuple[str, int], Line] = {}

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines.values())

    def of(self, task: str, rank: int) -> Line:
        found = self._lines.get((task, rank))
        if found is None:
            found = self._lines[task, rank] = Line(task, rank, self.all)
        return found

    def of_task(self, task: str) -> list[Line]:
        """The most urgent first."""
        return sorted((line for line in self._lines.values() if line.task == task), key=lambda line: line.rank)

    def part(self, task: str | None, urgency: int, tenant: TenantName | None, items: int) -> float | None:
        """As `Line.part`."""
        line = self._lines.get((task or "", urgency >> 1))
        return None if line is None else line.part(tenant, bool(urgency & 1), items)
