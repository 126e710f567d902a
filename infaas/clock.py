"""Time as an argument: shells hold a `Clock`, decisions get numbers, tests move `ManualClock` by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Monotonic seconds; only differences mean anything."""

    def wall(self) -> float:
        """Seconds since the epoch; for records that people and other machines read."""


class SystemClock:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class WallTimes:
    """Moments of the monotonic clock on the wall's, in the same order: what is between the two is measured now and
    then, not at each moment, for whoever is held up between two looks at clocks finds it larger than it is."""

    LOOK_EVERY_S = 10.0
    JUMP_S = 0.001
    """The wall clock was set when more than this has changed; less is how well it can be measured."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_s, self._blur_s = min([self._measured() for _ in range(5)], key=lambda found: found[1])
        self._look_at = clock.now() + self.LOOK_EVERY_S

    def of(self, at_s: float) -> float:
        """Seconds since the epoch."""
        now = self._clock.now()
        if now >= self._look_at:
            found_s, blur_s = self._measured()
            if abs(found_s - self._offset_s) > self.JUMP_S + self._blur_s + blur_s:
                self._offset_s, self._blur_s = found_s, blur_s
            self._look_at = now + self.LOOK_EVERY_S
        return at_s + self._offset_s

    def _measured(self) -> tuple[float, float]:
        """What is between the clocks, and how far from it that may be."""
        before = self._clock.now()
        wall = self._clock.wall()
        after = self._clock.now()
        return wall - (before + after) / 2, (after - before) / 2


def iso(wall_s: float) -> str:
    """ISO 8601 in UTC, milliseconds."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
