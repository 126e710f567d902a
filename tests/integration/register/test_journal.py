from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from infaas_controller.decide.candidates import Admissions
from infaas_controller.decide.policies.slo import SloPolicy
from infaas_controller.decide.select import select_traced
from infaas_controller.decisions import Trace
from infaas_controller.journal import ALIKE_AT_ONCE, CANDIDATES_PER_S, MAX_CANDIDATES, Journal
from infaas_controller.ledger import Ledger

from infaas.catalog.catalog import Catalog
from infaas.domain.ids import DecisionId, TaskName
from infaas.domain.query import Decision, Level
from infaas.errors import UnavailableError
from infaas.testing.builders import a_query, a_variant, a_view, a_worker, an_instance
from infaas.testing.clock import ManualClock


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    yield opened
    opened.close()


def a_decision(number: int = 1, outcome: str = "saturated") -> Decision:
    at = f"2026-01-01T00:00:{number:02}.000Z"
    ids = (DecisionId(f"d-{number}"), f"r-{number}")
    return Decision(*ids, at, "digits", Level.TASK, TaskName("digits"), "slo", {}, outcome, "because")


def record(journal: Journal, decision: Decision, trace: Trace | None = None) -> None:
    """As the controller does."""
    if journal.take(decision.outcome, decision.handle):
        journal.keep(decision, trace)


async def test_decisions_are_found_while_they_wait_and_after(catalog: Catalog) -> None:
    journal = Journal(catalog, sample=1.0)
    record(journal, a_decision(1))
    assert await journal.find("r-1") == a_decision(1)
    await journal.drain()
    assert len(journal) == 0
    assert await journal.find("d-1") == a_decision(1)
    assert await journal.find("nope") is None
    assert list(await journal.recent(5)) == [a_decision(1)]


async def test_the_loop_writes_what_comes_in_batches(catalog: Catalog) -> None:
    journal = Journal(catalog, sample=1.0, batch=3, linger_s=0.001)
    task = asyncio.create_task(journal.run(), name="journal")
    for number in range(10):
        record(journal, a_decision(number))
    async with asyncio.timeout(20):
        while journal.written < 10:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    task.cancel()
    await asyncio.wait([task])
    assert len(await journal.recent(100)) == 10


async def test_what_the_queue_cannot_hold_is_dropped_and_counted(catalog: Catalog) -> None:
    journal = Journal(catalog, sample=1.0, capacity=2)
    for number in range(5):
        record(journal, a_decision(number))
    assert (len(journal), journal.dropped) == (2, 3)


@pytest.mark.parametrize(("sample", "places"), [(0.0, []), (1.0, [0, 1, 2, 3]), (0.5, [1, 3])])
async def test_of_usual_answers_the_share_is_kept_that_would_be_one_by_one(
    catalog: Catalog, sample: float, places: list[int]
) -> None:
    draws = [0.5, 0.1, 0.9, 0.49]
    together = Journal(catalog, sample=sample, draw=iter(draws).__next__)
    apart = Journal(catalog, sample=sample, draw=iter(draws).__next__)
    assert list(together.take_usual(4)) == places
    assert [place for place in range(4) if apart.take("answered", "digits", 1)] == places
    assert list(together.take_usual(0)) == []


@pytest.mark.parametrize("waiting", [0, 1, 3])
async def test_usual_answers_for_which_there_is_no_room_are_dropped_and_counted(catalog: Catalog, waiting: int) -> None:
    dropped: list[int] = []
    journal = Journal(catalog, sample=1.0, capacity=3, clock=ManualClock())
    journal.on_drop(lambda: dropped.append(1))
    for number in range(waiting):
        record(journal, a_decision(number, "answered"))
    taken = list(journal.take_usual(5))
    assert taken == list(range(3 - waiting))
    for number in taken:
        journal.keep(a_decision(10 + number, "answered"))
    assert (len(journal), journal.dropped, len(dropped)) == (3, 2 + waiting, 2 + waiting)
    await journal.drain()
    assert list(journal.take_usual(4)) == [0, 1, 2], "there is room again"


async def test_answers_that_nobody_drew_are_not_dropped_where_there_is_no_room(catalog: Catalog) -> None:
    journal = Journal(catalog, sample=0.5, capacity=1, draw=iter([0.9, 0.4, 0.9, 0.3]).__next__)
    assert list(journal.take_usual(4)) == [1]
    assert journal.dropped == 1


async def test_a_lost_catalogue_costs_nothing_while_the_queue_holds(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise UnavailableError("gone")

    journal = Journal(catalog, sample=1.0)
    record(journal, a_decision(1))
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "write_decisions", lost)
        with pytest.raises(UnavailableError):
            await journal.drain()
    await journal.drain()
    assert await journal.find("d-1") == a_decision(1)


async def test_a_decision_that_cannot_be_kept_costs_neither_its_neighbours_nor_the_loop(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(catalog, sample=1.0, linger_s=0.001)
    write = catalog.write_decisions

    def picky(batch: Sequence[Decision]) -> None:
        if any(decision.id == "d-2" for decision in batch):
            raise ValueError("no database takes this")
        write(batch)

    monkeypatch.setattr(catalog, "write_decisions", picky)
    task = asyncio.create_task(journal.run(), name="journal")
    for number in range(5):
        record(journal, a_decision(number))
    async with asyncio.timeout(20):
        while len(journal):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert (journal.written, journal.dropped) == (4, 1)
    assert {decision.id for decision in await journal.recent(10)} == {"d-0", "d-1", "d-3", "d-4"}


async def test_what_is_dropped_is_said_at_once_and_then_now_and_then(
    catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = ManualClock()
    journal = Journal(catalog, sample=1.0, capacity=1, clock=clock)
    for number in range(100):
        record(journal, a_decision(number))
    clock.advance(31.0)
    for number in range(100):
        record(journal, a_decision(number))
    said = [line for line in capsys.readouterr().err.splitlines() if "are dropped" in line]
    assert len(said) == 2
    assert "dropped=1" in said[0]
    assert "dropped=100" in said[1]


async def test_the_journal_forgets_the_oldest(catalog: Catalog) -> None:
    journal = Journal(catalog, sample=1.0, batch=1, keep=10)
    for number in range(50):
        record(journal, a_decision(number))
    await journal.drain()
    assert len(await journal.recent(100)) == 10


def a_trace(variants: int) -> Trace:
    """Of a selection among so many, the last of which is the cheapest."""
    made = [a_variant(f"v{n}", cost=1.0 / (n + 1), p95_ms=5 + n) for n in range(variants)]
    instances = [an_instance(f"i{n}", variant=one.name) for n, one in enumerate(made)]
    view = a_view(variants=made, workers=[a_worker("w1", instances=instances)])
    ledger = Ledger()
    ledger.sync(view, 100.0)
    query = a_query(at=100.0, latency_ms=5_000.0, accuracy_min=0.0)
    found = select_traced(query, Admissions().of(query, view), ledger, SloPolicy(), 100.0, 0.5)
    return Trace(found, query.deadline, 100.0)


async def test_the_journal_says_of_candidates_what_the_memory_said(catalog: Catalog) -> None:
    journal, trace = Journal(catalog, sample=1.0), a_trace(5)
    record(journal, a_decision(1), trace)
    said = replace(a_decision(1), candidates=trace.candidates())
    assert len(said.candidates) == 5
    assert await journal.find("d-1") == said, "while it waits"
    await journal.drain()
    assert await journal.find("d-1") == said
    assert list(await journal.recent(1)) == [said]


async def test_of_many_candidates_some_are_kept_and_the_rest_counted(catalog: Catalog) -> None:
    journal, trace = Journal(catalog, sample=1.0), a_trace(MAX_CANDIDATES + 18)
    record(journal, a_decision(1), trace)
    await journal.drain()
    found = await journal.find("d-1")
    assert found is not None
    assert (len(found.candidates), found.candidates_left_out) == (MAX_CANDIDATES, 18)
    assert any(one.reason == "chosen" for one in found.candidates)


async def test_a_flood_is_journaled_with_candidates_for_some_of_it(catalog: Catalog) -> None:
    journal, trace = Journal(catalog, sample=1.0, clock=ManualClock()), a_trace(3)
    for number in range(CANDIDATES_PER_S + 20):
        record(journal, replace(a_decision(1), id=DecisionId(f"d-{number}")), trace)
    await journal.drain()
    found = await journal.recent(1_000)
    with_candidates = [one for one in found if len(one.candidates) == 3 and not one.candidates_left_out]
    without = [one for one in found if not one.candidates and one.candidates_left_out == 3]
    assert (len(with_candidates), len(without)) == (CANDIDATES_PER_S, 20)


async def test_a_flood_is_written_as_some_of_it_and_the_number_of_the_rest(catalog: Catalog) -> None:
    clock = ManualClock()
    journal = Journal(catalog, sample=1.0, clock=clock)
    for number in range(3 * ALIKE_AT_ONCE):
        record(journal, replace(a_decision(1), id=DecisionId(f"d-{number}")))
        record(journal, replace(a_decision(1), id=DecisionId(f"other-{number}"), handle="other"))
        record(journal, replace(a_decision(1, "answered"), id=DecisionId(f"good-{number}")))
        record(journal, replace(a_decision(1, "internal"), id=DecisionId(f"fault-{number}")))
    await journal.drain()
    clock.advance(1.0)
    record(journal, replace(a_decision(2), id=DecisionId("d-late")))
    await journal.drain()
    found = await journal.recent(10_000)
    for handle in ("digits", "other"):
        refused = [one for one in found if (one.handle, one.outcome) == (handle, "saturated") and one.id != "d-late"]
        assert len(refused) == ALIKE_AT_ONCE
        assert sum(one.alike for one in refused) == 2 * ALIKE_AT_ONCE
    assert sum(one.outcome == "answered" for one in found) == 3 * ALIKE_AT_ONCE
    assert sum(one.outcome == "internal" for one in found) == 3 * ALIKE_AT_ONCE, "of faults every one counts"
    assert next(one for one in found if one.id == "d-late").alike == 0
    assert journal.dropped == 0


async def test_however_often_a_flood_is_written_no_more_of_it_is_made_in_a_window(catalog: Catalog) -> None:
    journal = Journal(catalog, sample=1.0, clock=ManualClock(), batch=7)
    for number in range(5 * ALIKE_AT_ONCE):
        record(journal, replace(a_decision(1), id=DecisionId(f"d-{number}")))
        if number % 50 == 0:
            await journal.drain()
    await journal.drain()
    found = await journal.recent(10_000)
    assert len(found) <= ALIKE_AT_ONCE + 10, "and one for each batch that left nothing to count on"
    assert len(found) + sum(one.alike for one in found) == 5 * ALIKE_AT_ONCE
