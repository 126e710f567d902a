"""What one turn of the loop reads is bounded, and how long it took is known."""

from __future__ import annotations

import asyncio

import pytest
from infaas_controller.api import http_turns
from infaas_controller.api.http_turns import BUSY_SHARE, MANY, READ_FREELY, Turns

from infaas.testing.clock import ManualClock

EACH_S = 0.0001
"""What a piece takes."""


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


class Processor:
    """How long the loop has computed."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


async def a_turn(turns: Turns, clock: ManualClock, processor: Processor, pieces: int, computed: float) -> None:
    """`computed`: for how much of the time."""
    for _ in range(pieces):
        turns.reads(Connection())
        clock.advance(EACH_S)
        processor.seconds += EACH_S * computed
    await asyncio.sleep(0)


async def test_a_turn_takes_from_its_first_piece_to_its_end() -> None:
    clock, processor = ManualClock(), Processor()
    turns = Turns(clock, Ends(), processor)
    began = clock.now()
    await a_turn(turns, clock, processor, MANY, 1.0)
    assert turns.began_at == began
    assert turns.reading_s == pytest.approx(MANY * EACH_S)
    assert turns.number == 1


@pytest.mark.parametrize(
    ("pieces", "computed", "is_reading"),
    [
        (MANY, 1.01 * BUSY_SHARE, True),
        (MANY, 0.99 * BUSY_SHARE, False),
        (MANY - 1, 1.0, False),
        (10 * MANY, 0.99 * BUSY_SHARE, False),
    ],
)
async def test_a_turn_that_read_little_or_hardly_computed_was_long_for_something_else(
    pieces: int, computed: float, *, is_reading: bool
) -> None:
    clock, processor = ManualClock(), Processor()
    processor.seconds = 1_000.0
    turns = Turns(clock, Ends(), processor)
    await a_turn(turns, clock, processor, pieces, computed)
    assert (turns.reading_s > 0.0) is is_reading


async def test_who_comes_after_a_pause_has_not_waited_for_the_turn_before_it() -> None:
    clock, processor = ManualClock(), Processor()
    turns = Turns(clock, Ends(), processor)
    for pause_s, expected_s in ((0.0, 100 * EACH_S), (1.0, 0.0)):
        await a_turn(turns, clock, processor, 100, 1.0)
        clock.advance(pause_s)
        turns.reads(Connection())
        assert turns.reading_s == pytest.approx(expected_s)
        await asyncio.sleep(0)


def test_no_turn_reads_so_much_that_libuv_would_look_again_for_it() -> None:
    assert http_turns.READ_FREELY < 1_024
