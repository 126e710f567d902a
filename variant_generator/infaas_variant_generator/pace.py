"""How fast the host lets us run at this moment, told by a fixed piece of work.

A core of a shared host is often one of two that share their execution units, and the other one is somebody else's, or
our own: a host may put two of a guest's cores on one of its own and take them apart again. Then everything takes up to
twice as long, for milliseconds or minutes, without a gap and without a trace in the accounts of processor time. What
shows it is work that is always the same, done on all the cores at hand at the same time: when it takes much longer
than it is known to take here, so does everything else. How much longer differs between kinds of work, so nothing is
scaled by it; what was measured meanwhile does not count where there is better, but for variants of several threads
(see `fit`).
"""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Sequence
from queue import SimpleQueue

from infaas.clock import Clock

WORK = bytes((number * number >> 7) % 41 for number in range(12_000))
"""Compressed it takes some 0.1 ms, in which the interpreter's lock is free: several threads can do it at once."""
RUNS = 2
SLOW_RATIO = 1.2
"""From here on the host is slow. Undisturbed references stay within 1.1, with a busy neighbour they take 1.5 to 2.3."""
KNOWN_FOR_S = 3600.0


def _reference_s() -> float:
    """The shortest of a few runs of the work, in seconds."""
    best = float("inf")
    for _ in range(RUNS):
        begin = time.perf_counter()
        zlib.compress(WORK, 1)
        best = min(best, time.perf_counter() - begin)
    return best


class Reference:
    """The work on several cores at once. Its threads end with `close`; the calling thread does the work of the first
    core, wherever it runs."""

    def __init__(self, cores: int) -> None:
        self._companions = [_Companion() for _ in range(cores - 1)]

    def __call__(self, cores: Sequence[int]) -> float:
        """The longest among the cores, in seconds. Raises OSError where one of them may not be used."""
        others = list(zip(self._companions, cores[1:], strict=False))
        for companion, core in others:
            companion.begin(core)
        own_s = _reference_s()
        times, errors = [own_s], []
        for companion, _ in others:
            told = companion.end()
            if isinstance(told, OSError):
                errors.append(told)
            else:
                times.append(told)
        if errors:
            raise errors[0]
        return max(times)

    def close(self) -> None:
        for companion in self._companions:
            companion.close()


class _Companion:
    """A thread that does the work on the core it is given."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[int | None] = SimpleQueue()
        self._told: SimpleQueue[float | OSError] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="reference", daemon=True)
        self._thread.start()

    def begin(self, core: int) -> None:
        self._asked.put(core)

    def end(self) -> float | OSError:
        return self._told.get()

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (core := self._asked.get()) is not None:
            try:
                os.sched_setaffinity(0, (core,))
            except OSError as error:
                self._told.put(error)
            else:
                self._told.put(_reference_s())


def is_slow(reference_s: float, best_s: float) -> bool:
    return reference_s > SLOW_RATIO * best_s


class HostPace:
    """The best reference known of this host, by the number of cores that do the work at once. One that has not been
    reached for an hour is forgotten: machines move."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[int, tuple[float, float]] = {}
        """The best, in seconds, and when something last came near it."""

    def best_s(self, cores: int) -> float | None:
        """None when nothing is known."""
        best_s, reached_at = self._known.get(cores, (0.0, 0.0))
        if not best_s or self._clock.now() - reached_at > KNOWN_FOR_S:
            return None
        return best_s

    def note(self, cores: int, seen_s: float) -> None:
        """The best that one measurement saw itself, whatever was known before it."""
        known_s = self.best_s(cores)
        if known_s is None:
            self._known[cores] = seen_s, self._clock.now()
        elif not is_slow(seen_s, known_s):
            self._known[cores] = min(seen_s, known_s), self._clock.now()
