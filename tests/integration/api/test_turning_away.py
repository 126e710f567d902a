"""Queries like one that was refused for want of time are told the same for a moment, and are counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from computing_service import ComputingService
from infaas_controller.api import http_fast, http_resting, http_shedding, http_turns, turned
from infaas_controller.decide import shed
from serving import Serving, serving

from infaas.domain.query import Code, Priority
from infaas.errors import RefusedError

LATENCY_MS = 60_000


def request(value: int, priority: str = "standard", tenant: str = "", output: str = "") -> bytes:
    inputs = [
        {"name": f"INPUT{n}", "shape": [1, 16], "datatype": "INT32", "parameters": {"binary_data_size": 64}}
        for n in (0, 1)
    ]
    asked = {"outputs": [{"name": output}]} if output else {}
    head = json.dumps({"inputs": inputs, **asked}).encode()
    body = head + np.full(32, value, np.int32).tobytes()
    of_tenant = f"x-infaas-tenant: {tenant}\r\n" if tenant else ""
    fields = (
        f"POST /v2/models/simple/infer HTTP/1.1\r\nhost: t\r\nx-infaas-slo-latency-ms: {LATENCY_MS}\r\n"
        f"x-infaas-priority: {priority}\r\n{of_tenant}inference-header-content-length: {len(head)}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return fields.encode() + body


class Caller:
    """One connection that waits for each answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], dict[str, object]]:
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        body = json.loads(await self._reader.readexactly(int(fields["content-length"])))
        code = int(status.split(" ")[1])
        assert code == 200 or body["request_id"] == fields["x-request-id"]
        return code, fields, body

    def leave(self) -> None:
        self._writer.close()


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as the test runs."""
    monkeypatch.setattr(turned, "HOLDS_S", 60.0)
    monkeypatch.setattr(turned, "HOLDS_SHARE", 1.0)


async def test_who_comes_right_after_a_refusal_is_told_the_same_unread_and_counted(holds: None) -> None:
    service = ComputingService()
    service.refusal = RefusedError("too much to do", code=Code.DEADLINE_UNREACHABLE, retry_after_s=1.0)
    async with serving(service) as edges:
        host, port = edges.http.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        caller = Caller(reader, writer)
        told = [await caller.ask(request(n)) for n in range(6)]
        assert {status for status, _, _ in told} == {429}
        assert {body["error"] for _, _, body in told} == {"too much to do"}
        assert len({fields["x-request-id"] for _, fields, _ in told}) == 6
        assert all("retry-after" in fields for _, fields, _ in told)
        asked = len(service.seen)
        assert asked < 6
        shared = {fields["x-infaas-decision-id"] for _, fields, _ in told[asked - 1 :]}
        assert len(shared) == 1, "of the query that they are like"
        assert len({fields["x-infaas-decision-id"] for _, fields, _ in told[:asked]}) == asked
        await caller.ask(request(1, priority="critical"))
        assert len(service.seen) == asked + 1, "another priority is another matter"
        counted = sum(
            sample.value
            for family in edges.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "infaas_requests_total"
            and (sample.labels["code"], sample.labels["priority"]) == ("deadline-unreachable", "standard")
        )
        assert counted == 6
        writer.close()


async def test_who_is_told_what_another_was_told_hears_no_times_of_that_one(holds: None) -> None:
    service = ComputingService()
    service.refusal = RefusedError("too much to do", code=Code.DEADLINE_UNREACHABLE, retry_after_s=1.0)
    async with serving(service) as edges:
        host, port = edges.http.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        caller = Caller(reader, writer)
        told = [await caller.ask(request(n)) for n in range(6)]
        asked = len(service.seen)
        times = [(fields["x-infaas-queue-ms"], fields["server-timing"]) for _, fields, _ in told]
        assert times[:asked] == [("1.000", "queue;dur=1.000, run;dur=0.000, total;dur=1.000")] * asked
        assert times[asked:] == [("0.000", "queue;dur=0.000, run;dur=0.000, total;dur=0.000")] * (6 - asked)
        assert asked < 6
        own = {"x-request-id", "x-infaas-decision-id", "x-infaas-queue-ms", "server-timing"}
        others = [[(name, text) for name, text in fields.items() if name not in own] for _, fields, _ in told]
        assert all(fields == others[0] for fields in others), "all else is the same"
        writer.close()


async def test_what_a_tenant_has_no_room_for_is_told_to_none_but_him(holds: None) -> None:
    service = ComputingService()
    service.refusal = RefusedError("most is team-a's", code=Code.QUOTA, retry_after_s=1.0)
    async with serving(service) as edges:
        host, port = edges.http.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        caller = Caller(reader, writer)
        for tenant in ("team-a", "team-b", ""):
            before = len(service.seen)
            told = [await caller.ask(request(n, tenant=tenant)) for n in range(6)]
            assert {(status, fields["x-infaas-dropped-reason"]) for status, fields, _ in told} == {(429, "quota")}
            asked = service.seen[before:]
            assert 0 < len(asked) < 6
            assert {query.requirements.tenant for query in asked} == {tenant or None}
        writer.close()


async def test_what_is_wrong_with_a_query_itself_is_said_to_each_after_reading_it(holds: None) -> None:
    service = ComputingService()
    service.refusal = RefusedError("no variant can", code=Code.SLO_UNSATISFIABLE)
    async with serving(service) as edges:
        host, port = edges.http.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        caller = Caller(reader, writer)
        for n in range(5):
            await caller.ask(request(n))
        assert len(service.seen) == 5
        writer.close()


async def test_a_refusal_that_holds_no_more_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turned, "HOLDS_S", 0.0)
    service = ComputingService()
    service.refusal = RefusedError("too much to do", code=Code.DEADLINE_UNREACHABLE, retry_after_s=1.0)
    async with serving(service) as edges:
        host, port = edges.http.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        caller = Caller(reader, writer)
        for n in range(4):
            assert (await caller.ask(request(n)))[0] == 429
        service.refusal = None
        writer.write(request(9))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert len(service.seen) == 5
        writer.close()


async def test_after_a_refusal_that_holds_no_more_each_is_decided_on_before_the_next_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turned, "HOLDS_S", 1e-6)
    monkeypatch.setattr(turned, "PROBES", 6e7)
    service = ComputingService()
    async with serving(service) as edges:
        host, port = edges.http.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        caller = Caller(reader, writer)
        service.refusal = RefusedError("too much to do", code=Code.DEADLINE_UNREACHABLE, retry_after_s=1.0)
        while not service.decided:
            before = len(service.seen)
            await caller.ask(request(before))
            assert len(service.seen) == before + 1
            assert before < 5, "the first that are read teach what others are compared with"
        assert before, "who comes first waits for those that came with him"
        await caller.ask(request(1))
        assert service.decided == 2
        await caller.ask(request(1, priority="critical"))
        assert service.decided == 2, "another priority is another matter"
        writer.close()


async def test_how_many_were_told_the_same_is_kept_with_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turned, "HOLDS_S", 60.0)
    monkeypatch.setattr(turned, "HOLDS_SHARE", 1.0)
    service = ComputingService()
    service.refusal = RefusedError("too much to do", code=Code.DEADLINE_UNREACHABLE, retry_after_s=1.0)
    async with serving(service) as edges:
        host, port = edges.http.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        caller = Caller(reader, writer)
        told = [await caller.ask(request(n)) for n in range(6)]
        asked = len(service.seen)
        (shared,) = {fields["x-infaas-decision-id"] for _, fields, _ in told[asked - 1 :]}
        assert edges.fast is not None
        head = next(head for head in edges.fast._heads._as_sent.values() if head.turned is not None)
        assert head.turned is not None
        head.turned.until = 0.0
        await caller.ask(request(1))
        assert service.alike == {shared: 6 - asked}
        writer.close()


async def test_when_the_queries_of_a_head_become_others_they_hear_nothing_of_what_the_last_ones_were_told(
    holds: None,
) -> None:
    service = ComputingService()
    service.refusal = RefusedError("too much to do", code=Code.DEADLINE_UNREACHABLE, retry_after_s=1.0)
    async with serving(service) as edges:
        host, port = edges.http.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        caller = Caller(reader, writer)
        told = [await caller.ask(request(n, output="OUTPUT0")) for n in range(5)]
        shared = told[-1][1]["x-infaas-decision-id"]
        asked = len(service.seen)
        assert asked < 5, "they are told the same"
        assert edges.fast is not None
        (head,) = (head for head in edges.fast._heads._as_sent.values() if head.turned is not None)
        # The same header fields and as many bytes, but another output: another query, which teaches the head.
        _, fields, _ = await caller.ask(request(1, output="OUTPUT1"))
        assert len(service.seen) == asked + 1
        assert service.alike == {shared: 5 - asked}
        _, again, _ = await caller.ask(request(2, output="OUTPUT1"))
        assert shared not in (fields["x-infaas-decision-id"], again["x-infaas-decision-id"])
        service.refusal = None
        assert head.turned is None or head.turned.outcome.decision_id != shared
        writer.close()


def drown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every turn of the loop is too long from now on, however little it reads."""
    monkeypatch.setattr(http_turns, "MANY", 0)
    monkeypatch.setattr(http_turns, "BUSY_SHARE", 0.0)
    monkeypatch.setattr(http_turns, "FOLLOWS", 1e9)
    monkeypatch.setattr(http_fast, "LEAST_S", 0.0)
    monkeypatch.setattr(http_shedding, "LEAST_S", 0.0)
    monkeypatch.setattr(shed, "LEAST_S", 0.0)
    monkeypatch.setattr(shed, "LEAST_HELD_S", 1e-9)
    monkeypatch.setattr(shed, "BEGIN_SHARE", dict.fromkeys(Priority, 0.0))
    monkeypatch.setattr(shed, "HOLD_SHARE", dict.fromkeys(Priority, 0.0))
    monkeypatch.setattr(shed, "GAIN_PER_S", 1e9)


@asynccontextmanager
async def calling() -> AsyncIterator[tuple[ComputingService, Serving, Caller]]:
    service = ComputingService()
    async with serving(service) as edges:
        host, port = edges.http.rsplit(":", 1)
        caller = Caller(*await asyncio.open_connection(host, int(port)))
        try:
            yield service, edges, caller
        finally:
            caller.leave()


async def test_a_loop_that_reads_too_much_turns_queries_away_with_a_decision_and_lets_some_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with calling() as (service, edges, caller):
        assert {(await caller.ask(request(n)))[0] for n in range(3)} == {200}
        drown(monkeypatch)
        told = [await caller.ask(request(n)) for n in range(101)]
        refused = [(fields, body) for status, fields, body in told if status == 429]
        assert len(refused) + len(service.seen) == 104
        assert len(refused) >= 90, "nearly all"
        assert len(service.seen) > 3, "never all"
        assert {body["code"] for _, body in refused} == {"saturated"}
        assert all("retry-after" in fields and "controller.processes" in str(body["error"]) for fields, body in refused)
        assert {fields["x-infaas-dropped-reason"] for fields, _ in refused} == {"saturated"}
        assert len({fields["x-request-id"] for fields, _ in refused}) == len(refused)
        assert len(service.turned_away) == 1, "one was read for the decision that they share"
        assert len({fields["x-infaas-decision-id"] for fields, _ in refused}) == 1
        counted = sum(
            sample.value
            for family in edges.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "infaas_requests_total" and sample.labels["code"] == "saturated"
        )
        assert counted == len(refused)


async def test_when_turns_are_short_again_nobody_is_turned_away_and_the_decision_knows_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with calling() as (service, _edges, caller):
        with monkeypatch.context() as drowning:
            drown(drowning)
            told = [await caller.ask(request(n)) for n in range(60)]
        monkeypatch.setattr(shed, "GAIN_PER_S", 1e9)
        (shared,) = {fields["x-infaas-decision-id"] for status, fields, _ in told if status == 429}
        refused = sum(status == 429 for status, _, _ in told)
        after = [await caller.ask(request(n)) for n in range(10)]
        assert {status for status, _, _ in after[2:]} == {200}
        more = sum(status == 429 for status, _, _ in after)
        assert service.alike == {shared: refused + more - 1}, "all but the one that was read"


async def test_what_a_query_says_in_its_body_keeps_it_from_what_others_under_its_header_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with calling() as (_service, _edges, caller):
        drown(monkeypatch)
        for n in range(10):
            await caller.ask(request(n, output="OUTPUT0"))
        status, _, _ = await caller.ask(request(1, output="OUTPUT1"))
        assert status == 200, "another query: nothing is known of those like it"


def rested(edges: Serving) -> float:
    return sum(
        sample.value
        for family in edges.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "infaas_connections_rested_total"
    )


def keeps_up(edges: Serving, long_s: float) -> None:
    """The loop does again, so that nobody is turned away but who lay unread for longer than that."""
    assert edges.fast is not None
    for head in edges.fast._heads._as_sent.values():
        if head.shed is not None:
            head.shed.long_s, head.shed.share = long_s, 0.0


async def test_who_asks_again_while_telling_him_is_too_much_is_heard_later_and_told_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with calling() as (service, edges, caller):
        await caller.ask(request(0))
        await caller.ask(request(0))
        with monkeypatch.context() as drowning:
            drown(drowning)
            while (await caller.ask(request(1)))[0] == 200:
                pass
            monkeypatch.setattr(http_resting, "resting_of", lambda told, _: told)
            monkeypatch.setattr(http_resting, "WAKES_EVERY_S", 0.05)
            assert (await caller.ask(request(1)))[0] == 429
            assert rested(edges) == 1
        keeps_up(edges, long_s=0.01)
        seen = len(service.seen)
        late, fields, body = await caller.ask(request(1))
        assert (late, fields["x-infaas-dropped-reason"]) == (429, "saturated"), body
        assert len(service.seen) == seen
        monkeypatch.setattr(http_resting, "resting_of", lambda told, _: 0)
        async with asyncio.timeout(10.0):
            while (await caller.ask(request(1)))[0] != 200:
                pass


async def test_who_has_time_enough_is_served_after_he_lay_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 s, of which a second is nothing."""
    async with calling() as (_service, edges, caller):
        await caller.ask(request(0))
        await caller.ask(request(0))
        with monkeypatch.context() as drowning:
            drown(drowning)
            while (await caller.ask(request(1)))[0] == 200:
                pass
            monkeypatch.setattr(http_resting, "resting_of", lambda told, _: told)
            assert (await caller.ask(request(1)))[0] == 429
            assert rested(edges) == 1
        keeps_up(edges, long_s=9.0)
        assert (await caller.ask(request(1)))[0] == 200


async def test_from_the_drain_on_everybody_is_heard_and_told_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    async with calling() as (service, edges, caller):
        await caller.ask(request(0))
        await caller.ask(request(0))
        drown(monkeypatch)
        while (await caller.ask(request(1)))[0] == 200:
            pass
        monkeypatch.setattr(http_resting, "resting_of", lambda told, _: told)
        monkeypatch.setattr(http_resting, "WAKES_EVERY_S", 60.0)
        assert (await caller.ask(request(1)))[0] == 429
        asking = asyncio.create_task(caller.ask(request(1)))
        await asyncio.wait({asking}, timeout=0.05)
        assert not asking.done(), "he is not read"
        assert edges.fast is not None
        service.refusal = RefusedError("it drains", code=Code.DRAINING)
        edges.fast.shedding.end()
        async with asyncio.timeout(10.0):
            _, _, body = await asking
        assert body["code"] == "draining"
