"""What keeps one bad query from walking through the fleet (SURFACE rule 15): a quarantine of inputs, a retry budget."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from infaas.domain.query import Query

QUARANTINE_S = 600.0
QUARANTINED_AT_MOST = 1_000
RETRY_SHARE = 0.1
RETRY_BURST = 10.0


class Quarantine:
    """Digests of inputs that ended their instance twice. Costs nothing while it is empty."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, query: Query, now: float) -> None:
        self._until[digest(query)] = now + QUARANTINE_S
        while len(self._until) > QUARANTINED_AT_MOST:
            self._until.popitem(last=False)

    def holds(self, query: Query, now: float) -> bool:
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        return bool(self._until) and digest(query) in self._until


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
