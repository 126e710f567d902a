"""The level-triggered loop: do something every period, or sooner when woken; one failure costs one period."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from infaas.clock import Clock, SystemClock
from infaas.observe.log import get_logger

_log = get_logger(__name__)
_SYSTEM_CLOCK = SystemClock()
SAY_EVERY_S = 10.0
"""A loop that goes on failing for the same reason says so at once and then this often."""


async def every(
    period_s: float,
    fn: Callable[[], Awaitable[Any]],
    *,
    wake: asyncio.Event | None = None,
    clock: Clock = _SYSTEM_CLOCK,
    name: str | None = None,
) -> NoReturn:
    """Call `fn` now, then on a grid of `period_s`, and at once whenever `wake` is set (it is cleared before the call).

    The grid does not drift with the time that `fn` takes, and ticks missed while it ran are left out, not made up for.
    A tick that raises is logged with its reason and the loop goes on. Ends by cancellation only.
    """
    if period_s <= 0:
        raise ValueError(f"period_s must be above 0, not {period_s}")
    label = name or getattr(fn, "__qualname__", repr(fn))
    signal = asyncio.Event() if wake is None else wake
    due = clock.now()
    failures = 0
    said, said_at = "", float("-inf")
    while True:
        signal.clear()
        try:
            await fn()
        except Exception as error:
            failures += 1
            reason = f"{type(error).__name__}: {error}"
            if failures == 1 or reason != said or clock.now() - said_at >= SAY_EVERY_S:
                said, said_at = reason, clock.now()
                _log.error("tick failed", loop=label, reason=reason, failures=failures)
            _log.debug("tick failed here", loop=label, exc_info=error)
        else:
            if failures:
                _log.info("tick works again", loop=label, failures=failures)
            failures = 0
        due = next_due(due, period_s, clock.now())
        await _wait_until(due, signal, clock)
        if signal.is_set() and clock.now() < due:
            due -= period_s  # an extra tick: the next regular one stays where it was


def next_due(last_due: float, period_s: float, now: float) -> float:
    """The first point of the grid after `now`."""
    missed = max(0, int((now - last_due) // period_s))
    due = last_due + (missed + 1) * period_s
    return due if due > now else due + period_s


async def _wait_until(due: float, signal: asyncio.Event, clock: Clock) -> None:
    while not signal.is_set() and (left_s := due - clock.now()) > 0:
        try:
            async with asyncio.timeout(left_s):
                await signal.wait()
        except TimeoutError:
            continue
