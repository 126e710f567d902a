"""What one turn of the loop reads is bounded, and how long it took is known."""

from __future__ import annotations

import asyncio

import pytest
from infaas_controller.api import http_turns
from infaas_controller.api.http_turns import MANY, READ_FREELY, Turns

from infaas.testing.clock import ManualClock


class Connection:
    def __init__(self, *, closes: bool = False) -> None:
        self.closes = closes
        self.said: list[str] = []

    def is_closing(self) -> bool:
        return self.closes

    def pause_reading(self) -> None:
        self.said.append("pause")

    def resume_reading(self) -> None:
        self.said.append("resume")


class Ends:
    count = 0

    def __call__(self) -> None:
        self.count += 1


async def test_who_is_read_late_in_a_long_turn_rests_until_it_has_ended() -> None:
    ended = Ends()
    turns = Turns(ManualClock(), ended)
    early, late, gone = Connection(), Connection(), Connection(closes=True)
    for _ in range(READ_FREELY):
        turns.reads(early)
    turns.reads(late)
    turns.reads(gone)
    assert (early.said, late.said, gone.said) == ([], ["pause"], ["pause"])
    await asyncio.sleep(0)
    assert (late.said, gone.said) == (["pause", "resume"], ["pause"])
    assert ended.count == 1
    turns.reads(late)
    assert late.said == ["pause", "resume"], "the next turn begins anew"


async def test_a_turn_takes_from_its_first_piece_to_its_end_and_counts_by_what_it_read() -> None:
    clock = ManualClock()
    turns = Turns(clock, Ends())
    began = clock.now()
    for _ in range(MANY):
        turns.reads(Connection())
        clock.advance(0.001)
    await asyncio.sleep(0)
    assert turns.began_at == began
    assert turns.reading_s == pytest.approx(MANY * 0.001)
    assert turns.number == 1
    for _ in range(MANY - 1):
        turns.reads(Connection())
        clock.advance(0.001)
    await asyncio.sleep(0)
    assert turns.reading_s == 0.0, "something else made it long"
    assert turns.number == 2


def test_no_turn_reads_so_much_that_libuv_would_look_again_for_it() -> None:
    assert http_turns.READ_FREELY < 1_024
