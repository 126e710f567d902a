"""What keeps one bad query from walking through the fleet (SURFACE rule 15): inputs that are suspected of having ended
an instance, inputs that are known to, and a budget of retries.

All of it is bounded memory of this controller's process, and passes: a model that was mended is asked again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable

from infaas.domain.query import Query
from infaas_controller.queues import Ticket

QUARANTINE_S = 600.0
QUARANTINED_AT_MOST = 1_000
SUSPECTED_S = 120.0
SUSPECTED_AT_MOST = 10_000
DIGESTED_AT_ONCE_BYTES = 1 << 20
"""A millisecond or two."""
RETRY_SHARE = 0.1
RETRIES_AT_START = 10.0
RETRIES_SAVED = 100.0


class Quarantine:
    """Digests of inputs that ended their instance twice, and of those that were running when one died. A query is
    digested only when what is kept holds one of its outline, so that ordinary queries pay next to nothing.

    A large input is not digested here, on the loop: `order` asks for it, and one of `digested`, from which on it is
    remembered, and `not_digested` follows. Until then it is known by its ticket alone, which is what is tried again.
    """

    def __init__(self, order: Callable[[Ticket], None]) -> None:
        self._order = order
        self._quarantined = _Digests(QUARANTINE_S, QUARANTINED_AT_MOST)
        self._suspected = _Digests(SUSPECTED_S, SUSPECTED_AT_MOST)
        self._undigested: dict[int, bool] = {}
        """Whose digest was ordered, by ticket number, and whether they are for quarantine."""

    @property
    def ordered(self) -> int:
        """Digests that were ordered and have not come."""
        return len(self._undigested)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is suspected, as nearly always."""
        return not (self._quarantined.until or self._suspected.until)

    def add(self, ticket: Ticket, now: float) -> None:
        self._note(ticket, now, is_guilty=True)

    def holds(self, ticket: Ticket, now: float) -> bool:
        return self._quarantined.holds(ticket, now)

    def suspect(self, ticket: Ticket, now: float) -> None:
        """Its instance died while running it: whoever sends it next, it runs alone in a process of its own."""
        self._note(ticket, now, is_guilty=False)

    def suspects(self, ticket: Ticket, now: float) -> bool:
        return self._suspected.holds(ticket, now)

    def clear(self, ticket: Ticket) -> None:
        """It was answered: the death was not its doing."""
        if self._undigested.get(ticket.number) is False:
            del self._undigested[ticket.number]
        else:
            self._suspected.discard(ticket)

    def wants_digest(self, query: Query) -> bool:
        """Whether a large query must be digested before it is decided on."""
        if self.is_empty:
            return False
        return is_slow_to_digest(query) and (self._quarantined.has_like(query) or self._suspected.has_like(query))

    def digested(self, ticket: Ticket, found: bytes, now: float) -> None:
        """What was ordered."""
        ticket.digest = found
        is_guilty = self._undigested.pop(ticket.number, None)
        if is_guilty is not None:
            self._note(ticket, now, is_guilty=is_guilty)

    def not_digested(self, ticket: Ticket) -> None:
        """What was ordered cannot be had: it is not remembered."""
        self._undigested.pop(ticket.number, None)

    def _note(self, ticket: Ticket, now: float, *, is_guilty: bool) -> None:
        if ticket.digest is None and is_slow_to_digest(ticket.query):
            is_ordered = ticket.number in self._undigested
            self._undigested[ticket.number] = is_guilty
            if not is_ordered:
                self._order(ticket)
        elif is_guilty:
            self._suspected.discard(ticket)
            self._quarantined.add(ticket, now)
        else:
            self._suspected.add(ticket, now)


class _Digests:
    """A bounded set of digests that expire, oldest first."""

    def __init__(self, kept_s: float, at_most: int) -> None:
        self._kept_s = kept_s
        self._at_most = at_most
        self.until: OrderedDict[tuple[Hashable, bytes], float] = OrderedDict()
        """Those that are kept, and until when."""
        self._outlines: Counter[Hashable] = Counter()

    def add(self, ticket: Ticket, now: float) -> None:
        key = outline(ticket.query), _digest_of(ticket)
        self._remove(key)
        self.until[key] = now + self._kept_s
        self._outlines[key[0]] += 1
        while len(self.until) > self._at_most:
            self._remove(next(iter(self.until)))

    def discard(self, ticket: Ticket) -> None:
        if self.has_like(ticket.query):
            self._remove((outline(ticket.query), _digest_of(ticket)))

    def holds(self, ticket: Ticket, now: float) -> bool:
        while self.until and next(iter(self.until.values())) <= now:
            self._remove(next(iter(self.until)))
        return self.has_like(ticket.query) and (outline(ticket.query), _digest_of(ticket)) in self.until

    def has_like(self, query: Query) -> bool:
        """Whether one of its outline is kept."""
        return bool(self._outlines) and outline(query) in self._outlines

    def _remove(self, key: tuple[Hashable, bytes]) -> None:
        if self.until.pop(key, None) is None:
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
    """Of what a model sees: the handle and every input's name, type, shape and bytes. No interpreter lock is held while
    bytes are worked on."""
    found = hashlib.sha256(query.handle.encode())
    for tensor in sorted(query.inputs, key=lambda each: each.name):
        found.update(f"\0{tensor.name}\0{tensor.datatype}\0{tensor.shape}\0".encode())
        found.update(tensor.data)
    return found.digest()


def is_slow_to_digest(query: Query) -> bool:
    return sum(len(tensor.data) for tensor in query.inputs) > DIGESTED_AT_ONCE_BYTES


def _digest_of(ticket: Ticket) -> bytes:
    if ticket.digest is None:
        ticket.digest = digest(ticket.query)
    return ticket.digest


class RetryBudget:
    """Retries of work that had been running: a tenth of the queries since the start and `RETRIES_AT_START`, so that a
    controller's first queries have one too. What is not used is saved up to `RETRIES_SAVED`: a lost worker takes whole
    batches along, all of which are tried again at once.
    """

    def __init__(self) -> None:
        self._left = RETRIES_AT_START

    def arrived(self, queries: int = 1) -> None:
        self._left = min(RETRIES_SAVED, self._left + queries * RETRY_SHARE)

    def spend(self) -> bool:
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
