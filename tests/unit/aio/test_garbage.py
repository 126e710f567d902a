"""Full collections come between queries, and not for ever later."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import suppress

import pytest

from infaas.aio import garbage
from infaas.testing.clock import ManualClock


@pytest.fixture
def full() -> Iterator[list[int]]:
    """Grows with every full collection."""
    seen: list[int] = []
    threshold = gc.get_threshold()

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            seen.append(1)

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_a_settled_program_makes_no_full_collection_by_itself(full: list[int]) -> None:
    garbage.settle()
    assert gc.get_freeze_count() > 10_000
    del full[:]
    kept = [[n] for n in range(2_000_000)]
    assert len(kept) == 2_000_000
    assert not full


@pytest.mark.parametrize(
    ("waits_s", "is_idle", "expected"), [(20, True, 1), (20, False, 0), (601, False, 1), (1, True, 0)]
)
async def test_a_full_collection_waits_for_a_moment_without_queries_but_not_for_ever(
    full: list[int], waits_s: float, is_idle: bool, expected: int
) -> None:
    clock = ManualClock()
    last = [clock.now()]
    clock.advance(waits_s)
    del full[:]
    await garbage._collect(lambda: is_idle, clock, last)
    assert len(full) == expected
    task = asyncio.create_task(garbage.collect_between(lambda: True, clock), name="garbage")
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
