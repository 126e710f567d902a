"""What the engine wants to be woken for: deadlines, batches that hang, loads that were never reported."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Container
from enum import IntEnum
from math import inf

from infaas_controller.lanes import Lane

_TIDY_ABOVE = 1_000
What = int | Lane | tuple[int, ...]


class Due(IntEnum):
    """Why a timer is set, which says what it is set for: queries' numbers, a query's, a batch's, an instance."""

    DEADLINE = 0
    OVERDUE = 1
    UNREPORTED = 2
    PARKED = 5
    SLOW_LOAD = 3


class Timers:
    """Knows queries and batches by number only, so that one that has ended is not kept by its timer."""

    def __init__(self, queries: Container[int], batches: Container[int]) -> None:
        """The containers are those of what has not ended; timers of the rest are stale."""
        self._queries = queries
        self._of = {Due.PARKED: queries, Due.OVERDUE: batches}
        self._heap: list[tuple[float, int, Due, What]] = []
        self._numbers = itertools.count()
        self._tidy_above = _TIDY_ABOVE

    def set(self, when: float, due: Due, what: What) -> None:
        heapq.heappush(self._heap, (when, next(self._numbers), due, what))
        if len(self._heap) > self._tidy_above:
            self._heap = [timer for timer in self._heap if not self._is_stale(timer[2], timer[3])]
            heapq.heapify(self._heap)
            self._tidy_above = max(_TIDY_ABOVE, 4 * len(self._heap))

    def pop(self, now: float) -> tuple[Due, What] | None:
        """One that has rung, if there is any."""
        while self._heap and self._heap[0][0] <= now:
            _, _, due, what = heapq.heappop(self._heap)
            if not self._is_stale(due, what):
                return due, what
        return None

    def next_due(self, before: float = inf) -> float | None:
        """None: nothing is due until then. What is later is not looked at, and may be stale."""
        while self._heap and self._heap[0][0] < before:
            when, _, due, what = self._heap[0]
            if not self._is_stale(due, what):
                return when
            heapq.heappop(self._heap)
        return None

    def _is_stale(self, due: Due, what: What) -> bool:
        if isinstance(what, tuple):
            queries = self._queries
            for number in what:  # noqa: SIM110  (a generator costs more than all the looking)
                if number in queries:
                    return False
            return True
        return not isinstance(what, Lane) and what not in self._of[due]
