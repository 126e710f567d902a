"""A clock that moves only when a test says so."""

from __future__ import annotations


class ManualClock:
    """Both clocks advance together; `wall_s` sets where the wall clock starts."""

    def __init__(self, now_s: float = 1_000.0, wall_s: float = 1_750_000_000.0) -> None:
        self._now = now_s
        self._wall = wall_s

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> float:
        """Move both clocks forward; returns the new monotonic time. Raises ValueError for going back."""
        if seconds < 0:
            raise ValueError(f"time does not go back: advance({seconds})")
        self._now += seconds
        self._wall += seconds
        return self._now
