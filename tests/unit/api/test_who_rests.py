"""Connections that are not read for a while, and are all heard again."""

from __future__ import annotations

import asyncio

import pytest
from infaas_controller.api import http_resting
from infaas_controller.api.http_resting import RESTS_S, WAKES_AT_ONCE, Resting
from infaas_controller.decide.shed import LONG_REFUSING_S, resting_of

from infaas.testing.clock import ManualClock

LONG_S = 4 * LONG_REFUSING_S


class Connection:
    def __init__(self, woken: asyncio.Event) -> None:
        self._woken = woken
        self.has_rested = False
        self.is_read = True

    def rest(self) -> None:
        self.is_read = False

    def wake(self) -> None:
        self.is_read = True
        self._woken.set()


class Place:
    """So many connections whose queries were turned away in one turn."""

    def __init__(self, count: int) -> None:
        self.clock = ManualClock()
        self.counted: list[int] = []
        self.resting = Resting(self.clock, self.counted.append)
        self._woken = asyncio.Event()
        self.all = [Connection(self._woken) for _ in range(count)]
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
                self._woken.clear()
                await self._woken.wait()


async def test_nobody_rests_after_a_short_turn() -> None:
    place = Place(100)
    place.resting.turn_ended(LONG_REFUSING_S)
    place.resting.turn_ended(LONG_S)
    assert (place.unread, place.counted, len(place.resting)) == (0, [], 0), "those of an earlier turn are no matter"


async def test_after_a_long_turn_the_last_of_those_who_were_told_rest_and_are_counted() -> None:
    place = Place(100)
    place.resting.turn_ended(LONG_S)
    count = resting_of(100, LONG_S)
    assert 0 < count < 100
    assert [connection.is_read for connection in place.all] == [True] * (100 - count) + [False] * count
    assert (place.counted, len(place.resting)) == ([count], count)


async def test_they_are_heard_again_a_few_at_a_time_when_turns_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_resting, "WAKES_EVERY_S", 0.0)
    place = Place(100)
    place.resting.turn_ended(LONG_S)
    count = place.unread
    assert count > 2 * WAKES_AT_ONCE
    place.resting.turn_ended(0.001)
    for left in (count - WAKES_AT_ONCE, count - 2 * WAKES_AT_ONCE, 0):
        await place.until(left)
    assert [connection.has_rested for connection in place.all] == [False] * (100 - count) + [True] * count
    assert len(place.resting) == 0


async def test_while_turns_are_long_they_wait_but_no_longer_than_they_were_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_resting, "WAKES_EVERY_S", 0.0)
    place = Place(100)
    place.resting.turn_ended(LONG_S)
    count = place.unread
    place.clock.advance(0.99 * RESTS_S)
    for _ in range(20):
        await asyncio.sleep(0)
    assert place.unread == count
    place.clock.advance(0.02 * RESTS_S)
    await place.until(0)
