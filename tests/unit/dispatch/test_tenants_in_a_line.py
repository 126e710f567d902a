"""What a line knows of its tenants, and in which order a class gives their queries out."""

from __future__ import annotations

from collections import Counter
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.decide.fair import CREDIT_ITEMS, FORGOTTEN_AFTER_ITEMS
from infaas_controller.eligibility import EligibilityClass
from infaas_controller.lines import FLOWS_KEPT, OTHERS, Held, Line
from infaas_controller.queues import Ticket

from infaas.domain.ids import InstanceId, TenantName, VariantName
from infaas.testing.builders import a_query

numbers = count(1)


class Class:
    """A class of queries with nothing around it."""

    def __init__(self) -> None:
        self.all = Held()
        self.line = Line("digits", 1, self.all)
        self.queue = EligibilityClass(("k",), self.line, frozenset([VariantName("v")]), False, False)
        self.promised = self.queue.promised.setdefault(InstanceId("i1"), {})

    def come(self, tenant: str | None, *, latency_ms: float = 100.0, items: int = 1) -> Ticket:
        ticket = self._came(tenant, latency_ms, items)
        self.queue.push(ticket)
        return ticket

    def come_in_order(self, tenant: str | None, latencies_ms: list[float]) -> None:
        self.queue.push_in_order([self._came(tenant, ms, 1) for ms in sorted(latencies_ms)])

    def _came(self, tenant: str | None, latency_ms: float, items: int) -> Ticket:
        ticket = Ticket(next(numbers), a_query(tenant=tenant, latency_ms=latency_ms, items=items), None)
        ticket.flow = self.line.flow_of(ticket.query.requirements.tenant)
        self.line.came(ticket.flow, 0, items, ticket.input_bytes, 1)
        self.line.tickets[ticket.number] = self.promised[ticket.number] = ticket
        self.queue.count += 1
        return ticket

    def go(self, ticket: Ticket) -> None:
        """It leaves for an instance."""
        assert ticket.flow is not None
        self.line.serve(ticket.flow, ticket.items)
        self.leave(ticket)

    def leave(self, ticket: Ticket) -> None:
        assert ticket.flow is not None
        self.line.left(ticket.flow, 0, ticket.items, ticket.input_bytes, 1)
        del self.line.tickets[ticket.number], self.promised[ticket.number]
        ticket.entry = 0
        self.queue.count -= 1
        self.queue.tidy()

    def batch(self, size: int) -> list[Ticket]:
        taken = list(islice(self.queue.pops(), size))
        for ticket in taken:
            self.go(ticket)
        return taken


def tenants(tickets: list[Ticket]) -> list[str | None]:
    return [ticket.query.requirements.tenant for ticket in tickets]


@given(
    st.lists(
        st.tuples(st.sampled_from(["one", "in order", "another's", "batch"]), st.lists(st.integers(1, 5), min_size=1)),
        max_size=12,
    )
)
def test_those_that_come_in_order_go_like_any_others(steps: list[tuple[str, list[int]]]) -> None:
    """Of each tenant by deadline, and first come, first served where deadlines are the same."""
    there = Class()
    for step, times in steps:
        if step == "in order":
            there.come_in_order("a", [100.0 * each for each in times])
        elif step == "batch":
            waiting = dict(there.promised)
            for ticket in there.batch(len(times)):
                assert ticket.flow is not None
                mine = [each for each in waiting.values() if each.flow is ticket.flow]
                assert ticket is min(mine, key=lambda each: (each.deadline, each.number))
                del waiting[ticket.number]
        else:
            there.come("a" if step == "one" else "b", latency_ms=100.0 * times[0])
    count = len(there.promised)
    assert len(there.batch(10_000)) == count
    assert not there.promised


def test_one_tenants_queries_go_by_deadline() -> None:
    there = Class()
    late, early = there.come("a", latency_ms=200), there.come("a", latency_ms=100)
    assert there.batch(5) == [early, late]
    assert not there.line.is_shared
    assert (there.all.items, there.all.bytes, there.all.queries) == (0, 0, 0)


def test_several_tenants_go_by_turns_and_each_by_deadline() -> None:
    there = Class()
    flood = [there.come("a", latency_ms=50 + n) for n in range(20)]
    unnamed = [there.come(None, latency_ms=900 - n) for n in range(3)]
    batch = there.batch(8)
    assert Counter(tenants(batch)) == {"a": 5, None: 3}
    assert [ticket for ticket in batch if ticket in flood] == flood[:5]
    assert [ticket for ticket in batch if ticket in unnamed] == unnamed[::-1]
    assert tenants(batch)[1:6:2] == [None] * 3 or tenants(batch)[:6:2] == [None] * 3, "one after the other"
    assert there.batch(100) == flood[5:]


def test_turns_count_items() -> None:
    there = Class()
    for _ in range(10):
        there.come("large", items=8)
    for _ in range(80):
        there.come("small")
    found = Counter[str | None]()
    for ticket in there.batch(45):
        found[ticket.query.requirements.tenant] += ticket.items
    assert abs(found["large"] - found["small"]) <= 8


def test_who_took_much_at_once_waits_for_it_also_when_he_has_left_meanwhile() -> None:
    there = Class()
    for _ in range(100):
        there.come("steady")
    there.come("bursty", items=20)
    assert set(tenants(there.batch(4))) == {"steady", "bursty"}
    there.come("bursty", items=20)
    assert set(tenants(there.batch(10))) == {"steady"}


def test_who_comes_back_from_idleness_gets_his_part_and_a_little_for_the_time_before() -> None:
    there = Class()
    for _ in range(200):
        there.come("steady")
    there.come("b")
    there.batch(60)
    for _ in range(50):
        there.come("b")
    assert Counter(tenants(there.batch(20)))["b"] in (13, 14, 15), "what is his in 12, and 8 before that"
    assert Counter(tenants(there.batch(20)))["b"] in (9, 10, 11)


def test_what_is_put_back_goes_on_waiting_in_its_place() -> None:
    there = Class()
    ours = [there.come("a", latency_ms=100 + n) for n in range(4)]
    there.come("b")
    looked_at = list(islice(there.queue.pops(), 3))
    for ticket in looked_at:
        there.queue.push(ticket)
    batch = there.batch(9)
    assert Counter(tenants(batch)) == {"a": 4, "b": 1}
    assert [ticket for ticket in batch if ticket in ours] == ours
    assert tenants(batch).index("b") <= 1


def test_what_has_left_is_not_kept_and_one_tenant_alone_needs_no_turns() -> None:
    there = Class()
    for _ in range(3_000):
        there.leave(there.come("a"))
        there.leave(there.come("b"))
    keep = there.come("b")
    for _ in range(3_000):
        there.leave(there.come("a"))
    assert there.queue._turns is None or there.queue._turns.size < 200
    assert there.batch(5) == [keep]
    assert there.queue._turns is None
    assert there.all.queries == 0


def test_who_waits_for_nothing_is_forgotten_in_time() -> None:
    there = Class()
    there.come("a")
    there.come("b")
    there.batch(2)
    for _ in range(2 * FORGOTTEN_AFTER_ITEMS + 2):
        there.come("a")
        there.batch(1)
    assert set(there.line.flows) == {"a"}
    assert there.line.part(TenantName("a"), False, 1) is None
    there.come("b")
    there.come("b")
    there.come("a")
    assert there.line.part(TenantName("a"), False, 1) == pytest.approx((1 + 2) / 3)


def test_more_tenants_than_are_told_apart_share_one_flow() -> None:
    there = Class()
    for n in range(FLOWS_KEPT + 50):
        there.come(f"t{n}")
    assert len(there.line.flows) == FLOWS_KEPT + 1
    assert there.line.flows[OTHERS].items == 50
    assert len(there.batch(1_000)) == FLOWS_KEPT + 50
    assert there.line.waiting == 0


def test_a_tenant_waits_in_his_own_share_only() -> None:
    there = Class()
    assert there.line.part(TenantName("b"), False, 1) is None, "nobody is there"
    for _ in range(100):
        there.come("a")
    assert there.line.part(TenantName("a"), False, 1) is None, "nobody shares it"
    assert there.line.part(TenantName("b"), False, 1) == pytest.approx(1 / 100)
    there.come("b")
    assert there.line.part(TenantName("b"), False, 1) == pytest.approx((1 + 2) / 101)
    assert there.line.part(TenantName("a"), False, 1) == pytest.approx(1.0)


@given(
    lives=st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(1, 6), st.sampled_from([0, 0, 0, 1, 5, 9])),
        max_size=120,
    )
)
def test_while_two_tenants_wait_neither_gets_more_than_the_other_but_for_one_query_of_each(
    lives: list[tuple[str | None, int, int]],
) -> None:
    """And for what one of them was behind when he came."""
    there = Class()
    served: Counter[str | None] = Counter()
    since: dict[frozenset[str | None], dict[str | None, int]] = {}
    for tenant, items, takes in lives:
        there.come(tenant, items=items)
        for _ in range(takes):
            waiting = {flow.tenant for flow in there.line.flows.values() if flow.items} if there.line.is_shared else ()
            pairs = {frozenset((one, other)) for one in waiting for other in waiting if one != other}
            since = {pair: since.get(pair, {each: served[each] for each in pair}) for pair in pairs}
            for ticket in there.batch(1):
                served[ticket.query.requirements.tenant] += ticket.items
            for before in since.values():
                one, other = ((served[each] - before[each]) for each in before)
                assert abs(one - other) <= 12 + CREDIT_ITEMS, (before, served)
    rest = there.batch(1_000)
    assert there.all.items == there.all.queries == there.all.bytes == 0
    assert len(rest) == len({ticket.number for ticket in rest})
