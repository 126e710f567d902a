"""Which places of a stretch of memory are taken; the memory itself is not known here.

First fit at the lowest address (Knuth, The Art of Computer Programming, volume 1, 2.5): what is used stays at the
beginning, so memory that was never needed is never touched, and what is written next is likely still in a cache.
"""

from __future__ import annotations

from bisect import bisect_left

GRAIN_BYTES = 4096
"""Places begin at multiples of it and have such a size: a page."""


class Arena:
    """Holes in order of their places; neighbours among them are one hole."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes - size_bytes % GRAIN_BYTES
        self.reach_bytes = 0
        """Where the furthest place that was ever taken ended, but for what was forgotten."""
        self._begins = [0] if self.size_bytes else []
        self._ends = [self.size_bytes] if self.size_bytes else []
        self._taken: dict[int, int] = {}

    @property
    def places(self) -> int:
        """Taken now."""
        return len(self._taken)

    def take(self, size_bytes: int) -> int | None:
        """Where so many bytes may lie; None: there is no hole of that size."""
        want = -(-size_bytes // GRAIN_BYTES) * GRAIN_BYTES
        for at, (begin, end) in enumerate(zip(self._begins, self._ends, strict=True)):
            if end - begin >= want:
                self._cut(at, begin + want)
                self._taken[begin] = begin + want
                self.reach_bytes = max(self.reach_bytes, begin + want)
                return begin
        return None

    def give(self, begin: int) -> None:
        """The place that was taken there is free. Raises KeyError when none was."""
        end = self._taken.pop(begin)
        at = bisect_left(self._begins, begin)
        if at < len(self._begins) and self._begins[at] == end:
            end = self._ends[at]
            del self._begins[at], self._ends[at]
        if at and self._ends[at - 1] == begin:
            self._ends[at - 1] = end
        else:
            self._begins.insert(at, begin)
            self._ends.insert(at, end)

    def _cut(self, at: int, begin: int) -> None:
        """A hole begins later than it did, or is no more."""
        if self._ends[at] == begin:
            del self._begins[at], self._ends[at]
        else:
            self._begins[at] = begin

    def forget(self, begin: int) -> None:
        """Memory from there on is as if it had never been touched. Raises ValueError while a place is taken."""
        if self._taken:
            raise ValueError(f"{len(self._taken)} places are taken")
        self.reach_bytes = min(self.reach_bytes, begin)
