"""What keeps one bad query from walking through the fleet (SURFACE rule 15): inputs that are suspected of having ended
an instance, inputs that are known to, and a budget of retries.

All of it is bounded memory of this controller's process, and passes: a model that was mended is asked again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Hashable

from infaas.domain.query import Query

QUARANTINE_S = 600.0
QUARANTINED_AT_MOST = 1_000
SUSPECTED_S = 120.0
SUSPECTED_AT_MOST = 10_000
RETRY_SHARE = 0.1
RETRY_BURST = 10.0


class Quarantine:
    """Digests of inputs that ended their instance twice, and of those that were running when one died. A query is
    digested only when what is kept holds one of its outline, so that ordinary queries pay next to nothing."""

    def __init__(self) -> None:
        self._quarantined = _Digests(QUARANTINE_S, QUARANTINED_AT_MOST)
        self._suspected = _Digests(SUSPECTED_S, SUSPECTED_AT_MOST)

    def add(self, query: Query, now: float) -> None:
        self._suspected.discard(query)
        self._quarantined.add(query, now)

    def holds(self, query: Query, now: float) -> bool:
        return self._quarantined.holds(query, now)

    def suspect(self, query: Query, now: float) -> None:
        """Its instance died while running it: whoever sends it next, it runs alone in a process of its own."""
        self._suspected.add(query, now)

    def suspects(self, query: Query, now: float) -> bool:
        return self._suspected.holds(query, now)

    def clear(self, query: Query) -> None:
        """It was answered: the death was not its doing."""
        self._suspected.discard(query)


class _Digests:
    """A bounded set of digests that expire, oldest first."""

    def __init__(self, kept_s: float, at_most: int) -> None:
        self._kept_s = kept_s
        self._at_most = at_most
        self._until: OrderedDict[tuple[Hashable, bytes], float] = OrderedDict()
        self._outlines: Counter[Hashable] = Counter()

    def add(self, query: Query, now: float) -> None:
        key = outline(query), digest(query)
        self._remove(key)
        self._until[key] = now + self._kept_s
        self._outlines[key[0]] += 1
        while len(self._until) > self._at_most:
            self._remove(next(iter(self._until)))

    def discard(self, query: Query) -> None:
        if self._outlines and (mark := outline(query)) in self._outlines:
            self._remove((mark, digest(query)))

    def holds(self, query: Query, now: float) -> bool:
        while self._until and next(iter(self._until.values())) <= now:
            self._remove(next(iter(self._until)))
        if not self._until:
            return False
        mark = outline(query)
        return mark in self._outlines and (mark, digest(query)) in self._until

    def _remove(self, key: tuple[Hashable, bytes]) -> None:
        if self._until.pop(key, None) is None:
            return
        self._outlines[key[0]] -= 1
        if not self._outlines[key[0]]:
            del self._outlines[key[0]]


_EDGE_BYTES = 256


def outline(query: Query) -> Hashable:
    """What tells most inputs apart at the cost of a few bytes: sizes, and both ends of every tensor."""
    return query.handle, tuple(
        (tensor.name, tensor.shape, bytes(tensor.data[:_EDGE_BYTES]), bytes(tensor.data[-_EDGE_BYTES:]))
        for tensor in sorted(query.inputs, key=lambda each: each.name)
    )


def digest(query: Query) -> bytes:
    """Of what a model sees: the handle and every input's name, type, shape and bytes."""
    found = hashlib.sha256(query.handle.encode())
    for tensor in sorted(query.inputs, key=lambda each: each.name):
        found.update(f"\0{tensor.name}\0{tensor.datatype}\0{tensor.shape}\0".encode())
        found.update(tensor.data)
    return found.digest()


class RetryBudget:
    """Retries of work that had been running: at most a tenth of the queries, and a small burst."""

    def __init__(self) -> None:
        self._left = RETRY_BURST

    def arrived(self) -> None:
        self._left = min(RETRY_BURST * 10, self._left + RETRY_SHARE)

    def spend(self) -> bool:
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
