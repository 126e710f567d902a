"""Lines that others can have us write as often as they like: one at once, then one a minute for those like it."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

EVERY_S = 60.0
KINDS = 256
"""Kept at most; what comes beyond them begins anew."""


class Seldom:
    """Belongs to one thread."""

    def __init__(self, every_s: float = EVERY_S, now: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._now = now
        self._said: dict[Hashable, tuple[float, int]] = {}
        """When the last line of a kind was written, and how many were not since."""

    def unsaid(self, kind: Hashable) -> int | None:
        """None: write nothing now. Else how many lines like it were left out since the last one."""
        now = self._now()
        at, left_out = self._said.get(kind, (None, 0))
        if at is not None and now - at < self._every_s:
            self._said[kind] = at, left_out + 1
            return None
        if len(self._said) >= KINDS:
            self._said.clear()
        self._said[kind] = now, 0
        return left_out
