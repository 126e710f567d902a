"""How fast the host lets a core run at this moment, told by a fixed piece of work.

A core of a shared host is often one of two that share their execution units, and the other one is somebody else's.
While that one is busy everything here takes up to twice as long, for seconds or minutes, without a gap and without a
trace in the accounts of processor time. What shows it is work that is always the same: when it takes much longer than
it is known to take here, so does everything else. How much longer differs between kinds of work, so nothing is scaled
by it; what was measured meanwhile does not count where there is better.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from infaas.clock import Clock

REFERENCE_STEPS = 1000
REFERENCE_RUNS = 3
SLOW_RATIO = 1.2
"""From here on the host is slow. Undisturbed references stay within 1.1, with a busy neighbour they take 1.5 to 1.9."""
KNOWN_FOR_S = 3600.0


def reference_s() -> float:
    """The shortest of a few runs of the work, in seconds; it takes some 0.1 ms in all."""
    return min(_run_s() for _ in range(REFERENCE_RUNS))


def _run_s() -> float:
    total = 0
    begin = time.perf_counter()
    for number in range(REFERENCE_STEPS):
        total += number * number
    return time.perf_counter() - begin


def slowest_s(cores: Sequence[int], reference: Callable[[], float] = reference_s) -> float:
    """The longest reference among the cores; the calling thread may use the first of them afterwards, and no other.
    Without cores, where it runs. Raises OSError where it may not choose its core."""
    if not cores:
        return reference()
    longest = 0.0
    for core in (*cores[1:], cores[0]):
        os.sched_setaffinity(0, (core,))
        longest = max(longest, reference())
    return longest


def is_slow(reference_s: float, best_s: float) -> bool:
    return reference_s > SLOW_RATIO * best_s


class HostPace:
    """The best reference known of this host. One that has not been reached for an hour is forgotten: machines move."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._best_s: float | None = None
        self._reached_at = 0.0

    def best_s(self) -> float | None:
        """Seconds; None when nothing is known."""
        if self._best_s is not None and self._clock.now() - self._reached_at > KNOWN_FOR_S:
            self._best_s = None
        return self._best_s

    def note(self, best_s: float) -> None:
        """The best of one measurement."""
        known_s = self.best_s()
        if known_s is None or not is_slow(best_s, known_s):
            self._reached_at = self._clock.now()
        self._best_s = best_s if known_s is None else min(known_s, best_s)
