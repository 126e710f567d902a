"""Connections that are not read for a while, and are all heard again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from infaas_controller.api import http_resting
from infaas_controller.api.http_resting import RESTS_S, WAKES_AT_ONCE, Resting, Sleeper
from infaas_controller.decide.shed import LONG_REFUSING_S, WAKING_S, resting_of

from infaas.testing.clock import ManualClock

LONG_S = 4 * LONG_REFUSING_S


class Connection:
    def __init__(self, woken: asyncio.Event, *, fails: bool = False) -> None:
        self._woken = woken
        self._fails = fails
        self.unread_s = 0.0
        self.is_read = True
        self.is_aborted = False

    def rest(self) -> None:
        self.is_read = False

    def wake(self) -> None:
        self.is_read = True
        self._woken.set()
        if self._fails:
            raise OSError("gone")

    def abort(self) -> None:
        self.is_aborted = True


class Unrestful(Connection):
    def rest(self) -> None:
        raise OSError("gone")


def the_last(among: Sequence[Sleeper], count: int) -> Sequence[Sleeper]:
    return among[len(among) - count :]


class Place:
    """So many connections whose queries were turned away in one turn."""

    def __init__(self, count: int) -> None:
        self.clock = ManualClock()
        self.counted: list[int] = []
        self.resting = Resting(self.clock, self.counted.append, the_last)
        self.woken = asyncio.Event()
        self.all = [Connection(self.woken) for _ in range(count)]
        self.tell()

    def tell(self) -> None:
        for connection in self.all:
            self.resting.told(connection)

    @property
    def unread(self) -> int:
        return sum(not connection.is_read for connection in self.all)

    async def until(self, unread: int) -> None:
        async with asyncio.timeout(10.0):
            while self.unread != unread:
                self.woken.clear()
                await self.woken.wait()


@pytest.fixture
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_resting, "WAKES_EVERY_S", 0.0)


async def looks() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_nobody_rests_after_a_short_turn() -> None:
    place = Place(100)
    place.resting.turn_ended(LONG_REFUSING_S)
    place.resting.turn_ended(LONG_S)
    assert (place.unread, place.counted, len(place.resting)) == (0, [], 0), "those of an earlier turn are no matter"


async def test_after_a_long_turn_so_many_of_those_who_were_told_rest_as_are_too_many_and_are_counted() -> None:
    place = Place(100)
    place.resting.turn_ended(LONG_S)
    count = resting_of(100, LONG_S)
    assert 0 < count < 100
    assert [connection.is_read for connection in place.all] == [True] * (100 - count) + [False] * count
    assert (place.counted, len(place.resting)) == ([count], count)


async def test_who_is_told_twice_in_a_turn_rests_once() -> None:
    place = Place(100)
    place.tell()
    place.resting.turn_ended(LONG_S)
    assert place.unread == len(place.resting) == resting_of(100, LONG_S)


async def test_others_rest_each_time(looks_at_once: None) -> None:
    place = Place(100)
    place.resting = Resting(place.clock, place.counted.append)
    rested: list[frozenset[int]] = []
    for _ in range(5):
        place.tell()
        place.resting.turn_ended(LONG_S)
        rested.append(frozenset(n for n, one in enumerate(place.all) if not one.is_read))
        place.resting.turn_ended(0.0)
        await place.until(0)
        await looks()
    assert len(set(rested)) > 1


async def test_they_are_heard_again_a_few_at_a_time_when_turns_are_short(looks_at_once: None) -> None:
    place = Place(100)
    place.resting.turn_ended(LONG_S)
    count = place.unread
    assert count > 2 * WAKES_AT_ONCE
    place.resting.turn_ended(0.9 * WAKING_S)
    for left in (count - WAKES_AT_ONCE, count - 2 * WAKES_AT_ONCE, 0):
        await place.until(left)
    await looks()
    assert len(place.resting) == 0


async def test_how_long_something_lay_unread_is_known_until_the_next_look(looks_at_once: None) -> None:
    place = Place(100)
    place.resting.turn_ended(LONG_S)
    count = place.unread
    place.clock.advance(0.25)
    place.resting.turn_ended(0.0)
    await place.until(0)
    assert sorted({connection.unread_s for connection in place.all}) == [0.0, 0.25]
    assert sum(connection.unread_s > 0 for connection in place.all) == count
    assert len(place.resting) == count, "something may have lain there until now"
    await looks()
    assert {connection.unread_s for connection in place.all} == {0.0}, "what comes after that has not waited"
    assert not place.resting


async def test_who_has_just_rested_does_not_rest_again_at_once(looks_at_once: None) -> None:
    place = Place(100)
    place.resting.turn_ended(LONG_S)
    place.clock.advance(0.25)
    place.resting.turn_ended(0.0)
    await place.until(0)
    woken = [connection for connection in place.all if connection.unread_s]
    assert woken
    for connection in woken:
        connection.unread_s = 0.0  # it was read
    place.tell()
    place.resting.turn_ended(1e3 * LONG_S)
    assert all(connection.is_read for connection in woken)
    assert place.unread == 100 - len(woken)


async def test_while_turns_are_long_they_wait_but_hardly_longer_than_they_were_told(looks_at_once: None) -> None:
    place = Place(100)
    place.resting.turn_ended(LONG_S)
    count = place.unread
    for _ in range(9):
        place.clock.advance(0.1 * RESTS_S)
        place.resting.turn_ended(0.11 * RESTS_S)
        await looks()
    assert place.unread == count
    place.clock.advance(0.1 * RESTS_S)
    place.resting.turn_ended(0.11 * RESTS_S)
    await place.until(0)


async def test_however_long_turns_are_all_are_heard_again_in_time(looks_at_once: None) -> None:
    place = Place(2_000)
    place.resting.turn_ended(LONG_S)
    rested_s = 0.0
    while place.unread:
        assert rested_s < 1.5 * RESTS_S
        place.clock.advance(0.08)
        place.resting.turn_ended(0.09)
        rested_s += 0.08
        await looks()
    assert rested_s >= RESTS_S


async def test_a_long_turn_is_nothing_to_a_loop_that_has_been_idle_since(looks_at_once: None) -> None:
    place = Place(100)
    place.resting.turn_ended(LONG_S)
    await looks()
    assert place.unread
    place.clock.advance(1.01 * LONG_S)
    await place.until(0)


async def test_at_the_end_everybody_is_heard_again_and_nobody_rests_any_more() -> None:
    place = Place(100)
    place.resting.turn_ended(LONG_S)
    assert place.unread
    place.resting.end()
    assert place.unread == 0
    place.tell()
    place.resting.turn_ended(LONG_S)
    assert place.unread == 0


async def test_ones_fault_costs_him_his_connection_and_the_others_nothing(looks_at_once: None) -> None:
    place = Place(100)
    place.all[-1] = gone = Unrestful(place.woken)
    place.all[-2] = failing = Connection(place.woken, fails=True)
    place.resting.told(failing)
    place.resting.told(gone)
    place.resting.turn_ended(1e6 * LONG_S)
    count = len(place.resting)
    assert place.counted == [count]
    assert gone.is_aborted
    assert gone.is_read
    assert not failing.is_read
    place.clock.advance(1.01e6 * LONG_S)
    await place.until(0)
    assert failing.is_aborted
    assert sum(connection.is_aborted for connection in place.all) == 2
