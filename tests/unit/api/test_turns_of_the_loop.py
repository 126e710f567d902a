"""What one turn of the loop reads is bounded, and how long it took is known."""

from __future__ import annotations

import asyncio

import pytest
from infaas_controller.api import http_turns
from infaas_controller.api.http_turns import MANY_PER_S, READ_FREELY, Turns

from infaas.testing.clock import ManualClock

EACH_S = 0.5 / MANY_PER_S
"""What a piece takes where many of them make a turn long."""


class Connection:
    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.said: list[str] = []

    def rest(self) -> None:
        self.said.append("rest")

    def wake(self) -> None:
        if self.fails:
            raise OSError("gone")
        self.said.append("wake")

    def abort(self) -> None:
        self.said.append("abort")


class Ends:
    count = 0

    def __call__(self) -> None:
        self.count += 1


async def test_who_is_read_late_in_a_long_turn_rests_until_it_has_ended() -> None:
    ended = Ends()
    turns = Turns(ManualClock(), ended)
    early, gone, late = Connection(), Connection(fails=True), Connection()
    for _ in range(READ_FREELY):
        turns.reads(early)
    turns.reads(gone)
    turns.reads(late)
    assert (early.said, gone.said, late.said) == ([], ["rest"], ["rest"])
    await asyncio.sleep(0)
    assert (gone.said, late.said) == (["rest", "abort"], ["rest", "wake"]), "one's fault is not another's"
    assert ended.count == 1
    turns.reads(late)
    assert late.said == ["rest", "wake"], "the next turn begins anew"


async def test_a_turn_takes_from_its_first_piece_to_its_end_and_counts_by_what_it_read() -> None:
    clock = ManualClock()
    turns = Turns(clock, Ends())
    began = clock.now()
    for _ in range(100):
        turns.reads(Connection())
        clock.advance(EACH_S)
    await asyncio.sleep(0)
    assert turns.began_at == began
    assert turns.reading_s == pytest.approx(100 * EACH_S)
    assert turns.number == 1
    for _ in range(100):
        turns.reads(Connection())
        clock.advance(3 * EACH_S)
    await asyncio.sleep(0)
    assert turns.reading_s == 0.0, "something else made it long"
    assert turns.number == 2


async def test_who_comes_after_a_pause_has_not_waited_for_the_turn_before_it() -> None:
    clock = ManualClock()
    turns = Turns(clock, Ends())
    for pause_s, expected_s in ((0.0, 100 * EACH_S), (1.0, 0.0)):
        for _ in range(100):
            turns.reads(Connection())
            clock.advance(EACH_S)
        await asyncio.sleep(0)
        clock.advance(pause_s)
        turns.reads(Connection())
        assert turns.reading_s == pytest.approx(expected_s)
        await asyncio.sleep(0)


def test_no_turn_reads_so_much_that_libuv_would_look_again_for_it() -> None:
    assert http_turns.READ_FREELY < 1_024
