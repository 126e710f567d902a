"""The monitoring daemon: how busy this machine is, and how much of our time its host takes away.

A thread that only sleeps measures how late it wakes. On a machine that is shared, that lateness is time in which our
threads could not run either, whatever the processor counters say.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import psutil

from infaas import machine

_PERIOD_S = 0.02
_TOLERATED_S = 0.002
"""What an idle kernel and the interpreter's lock take anyway."""
_WINDOW = 500
"""Naps that the ratio looks back on: ten seconds."""


@dataclass(frozen=True, slots=True)
class HostLoad:
    cpu_ratio: float
    """Of all processors of the machine, since the last reading."""
    memory_ratio: float
    """Of the memory that this process may use: its container's when that is limited, else the machine's."""
    stall_ratio: float


def stall_ratio(naps: list[tuple[float, float]], tolerated_s: float = _TOLERATED_S) -> float:
    """The share of time lost: `naps` are (asked, slept) seconds; lateness within the tolerance does not count."""
    total = sum(slept for _, slept in naps)
    late = sum(max(0.0, slept - asked - tolerated_s) for asked, slept in naps)
    return late / total if total > 0 else 0.0


class Monitor:
    """Started and stopped by the composition root; `load` is for the event loop and costs microseconds."""

    def __init__(self) -> None:
        self._naps: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)
        self._read_at = 0.0
        self._last = HostLoad(0.0, 0.0, 0.0)

    def start(self) -> None:
        psutil.cpu_percent()  # its first answer means nothing
        psutil.cpu_percent(percpu=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def load(self) -> HostLoad:
        """Read at most a few times a second, however often reports go out."""
        now = time.monotonic()
        if now - self._read_at >= 0.25:
            self._read_at = now
            memory = machine.memory_used_ratio()
            self._last = HostLoad(
                psutil.cpu_percent() / 100.0,
                psutil.virtual_memory().percent / 100.0 if memory is None else memory,
                stall_ratio(list(self._naps)),
            )
        return self._last

    def idle_cores(self) -> float:
        """Of the processors that this process may use, since it was asked last; no more than its quota leaves."""
        used = psutil.cpu_percent(percpu=True)
        idle = sum([1.0 - used[core] / 100.0 for core in machine.allowed_cores() if core < len(used)])
        quota = machine.cpu_quota()
        return idle if quota is None else min(idle, quota)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._end.wait(_PERIOD_S):
            now = time.monotonic()
            self._naps.append((_PERIOD_S, now - before))
            before = now
