"""How long queries lie in their sockets before they are read, while the loop waits for a processor.

A caller's time begins when he sends; ours, when we read. Where model runs have the core, what lies between is no longer
nothing, and nobody but the kernel sees it: it keeps an account of how long each thread has waited for a processor.
"""

from __future__ import annotations

import os
from pathlib import Path

ACCOUNT = Path("/proc/thread-self/schedstat")
ASK_EVERY_S = 0.05
LONGEST = 2.0
"""A thread that is woken at any moment of somebody else's slice waits for half of it on average, and for all of it at
the longest."""
MOST_S = 0.01


class UnreadTime:
    """Of the loop whose thread makes it, and alone asks. 0 where the system keeps no such account."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._asked_at = float("-inf")
        self._waited_ns = self._turns = 0
        self._longest_s = 0.0
        try:
            self._file = os.open(ACCOUNT, os.O_RDONLY | os.O_CLOEXEC)
            self._waited_ns, self._turns = self._read(self._file)
        except (OSError, ValueError):
            self.close()

    def at(self, now: float) -> float:
        """Seconds, as of lately."""
        if self._file is None or now - self._asked_at < ASK_EVERY_S:
            return self._longest_s
        self._asked_at = now
        try:
            waited_ns, turns = self._read(self._file)
        except (OSError, ValueError):
            self.close()
            return 0.0
        if turns > self._turns:
            mean_s = (waited_ns - self._waited_ns) / (turns - self._turns) / 1e9
            self._longest_s = min(MOST_S, LONGEST * mean_s)
            self._waited_ns, self._turns = waited_ns, turns
        return self._longest_s

    def close(self) -> None:
        file, self._file = self._file, None
        self._longest_s = 0.0
        if file is not None:
            os.close(file)

    @staticmethod
    def _read(file: int) -> tuple[int, int]:
        """Nanoseconds that the thread has waited for a processor, and how often it got one."""
        _, waited_ns, turns = os.pread(file, 128, 0).split()
        return int(waited_ns), int(turns)
