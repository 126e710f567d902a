"""The tick-or-wake loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.aio.every import every, next_due
from infaas.clock import SystemClock
from infaas.testing.clock import ManualClock

Start = Callable[..., asyncio.Task[None]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    tasks: list[asyncio.Task[None]] = []

    def begin(*args: object, **kwargs: object) -> asyncio.Task[None]:
        task = asyncio.create_task(every(*args, **kwargs), name="loop")  # type: ignore[arg-type]
        tasks.append(task)
        return task

    yield begin
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Ticks:
    """Counts calls and lets a test wait for the n-th."""

    def __init__(self, then: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.count = 0
        self._then = then
        self._changed = asyncio.Event()

    async def __call__(self) -> None:
        self.count += 1
        self._changed.set()
        if self._then is not None:
            await self._then(self.count)

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.count < count:
                self._changed.clear()
                await self._changed.wait()


async def test_it_ticks_at_once_and_then_every_period(start: Start) -> None:
    clock = SystemClock()
    ticks = Ticks()
    began = clock.now()
    start(0.02, ticks, clock=clock)
    await ticks.reach(5)
    assert clock.now() - began >= 4 * 0.02


async def test_a_wake_ticks_at_once_however_long_the_period(start: Start) -> None:
    ticks, wake = Ticks(), asyncio.Event()
    start(3600, ticks, wake=wake)
    for count in (1, 2, 3):
        await ticks.reach(count)
        wake.set()
    await ticks.reach(4)
    assert not wake.is_set()


async def test_a_wake_during_a_tick_is_not_lost(start: Start) -> None:
    wake = asyncio.Event()

    async def wake_once(count: int) -> None:
        if count == 1:
            wake.set()

    ticks = Ticks(wake_once)
    start(3600, ticks, wake=wake)
    await ticks.reach(2)


async def test_a_failing_tick_is_logged_with_its_reason_and_the_loop_goes_on(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail_twice(count: int) -> None:
        if count <= 2:
            raise RuntimeError(f"no luck {count}")

    ticks = Ticks(fail_twice)
    start(0.001, ticks, name="scaling")
    await ticks.reach(4)
    written = capsys.readouterr().err
    for words in ("no luck 1", "no luck 2", "scaling", "works again"):
        assert words in written


async def test_the_grid_does_not_drift_and_missed_ticks_are_left_out(start: Start) -> None:
    clock = ManualClock(now_s=0.0)
    called_at: list[float] = []
    wake = asyncio.Event()

    async def slow(count: int) -> None:
        called_at.append(clock.now())
        clock.advance(25.0 if count == 1 else 1.0)  # the first tick misses those due at 10 and 20

    ticks = Ticks(slow)
    start(10.0, ticks, wake=wake, clock=clock)
    await ticks.reach(1)
    clock.advance(4.0)  # 29: not due before 30
    wake.set()
    await ticks.reach(2)
    clock.advance(0.5)
    wake.set()
    await ticks.reach(3)
    assert called_at[0] == 0.0
    assert called_at[1:] == [29.0, 30.5]


async def test_cancelling_ends_it(start: Start) -> None:
    ticks = Ticks()
    task = start(0.001, ticks)
    await ticks.reach(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_period_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="period_s"):
        await every(0, Ticks())


@given(
    last=st.floats(0, 1e6),
    period=st.floats(0.001, 1e3),
    late=st.floats(0, 1e5),
)
def test_the_next_point_is_on_the_grid_after_now_and_within_a_period(last: float, period: float, late: float) -> None:
    now = last + late
    due = next_due(last, period, now)
    slack = 1e-6 * max(1.0, now)
    assert now < due <= now + period + slack
    steps = (due - last) / period
    assert abs(steps - round(steps)) * period <= slack


async def test_a_loop_that_fails_for_long_does_not_fill_the_log(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(_: int) -> None:
        raise ValueError("again")

    ticks = Ticks(fail)
    start(0.001, ticks, name="failing")
    await ticks.reach(30)
    said = [line for line in capsys.readouterr().err.splitlines() if "tick failed " in line and "failing" in line]
    assert len(said) == 1
