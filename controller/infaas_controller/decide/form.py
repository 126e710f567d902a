"""Which waiting queries run together when a slot frees.

There is no timer: an idle executor never waits, a busy one lets queries gather, and the batch that leaves is bounded by
what pays (the profile's curve) and by the tightest deadline in it. Sizes count items, not requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

from infaas_controller.decide.curve import Curve

MAX_BATCH_BYTES = 64 * 2**20
"""What is staged at workers lies in their memory, and a message must stay below what a stream takes."""


class Waiting(Protocol):
    """What forming looks at in a query."""

    @property
    def deadline(self) -> float: ...

    @property
    def items(self) -> int: ...

    @property
    def input_bytes(self) -> int: ...


E = TypeVar("E", bound=Waiting)


class Limits(NamedTuple):
    """How the next batch of an instance would fare. `start_s`: until it would start."""

    start_s: float
    overhead_s: float
    usual: Callable[[int], float]
    """What is being observed over the profile's mean, by batch size."""
    promised: Callable[[int], float]
    """The same for the p95."""
    max_queries: int | None = None
    """1 for a query that runs alone because it may have killed its instance."""
    most: int | None = None
    """Items that the batch may hold; None: as many as pay. One query alone may hold more."""
    max_bytes: int = MAX_BATCH_BYTES
    """Of inputs; one query alone may hold more."""
    surely_s: float = inf
    """No batch that this may become runs longer than that."""
    drops_late: bool = True
    """Whether queries that would be late are set aside; a policy that binds keeps them until their deadline."""


class Formed(NamedTuple, Generic[E]):
    batch: list[E]
    items: int
    expired: list[E]
    """Their deadline has passed."""
    late: list[E]
    """More likely than not this instance would answer them too late."""
    left: E | None
    """Taken from the queue but not fitting: to be put back."""


def form(queue: Iterable[E], curve: Curve, limits: Limits, now: float) -> Formed[E]:
    """Take from a queue in deadline order. Stops at the first query that does not fit, so that none is overtaken.

    A query that has the batch to itself goes unless its answer would, on average, be late; others join only while the
    p95 of the grown batch keeps the tightest deadline.
    """
    batch: list[E] = []
    expired: list[E] = []
    late: list[E] = []
    left: E | None = None
    items = bytes_ = 0
    tightest = float("inf")
    most = curve.preferred if limits.most is None else limits.most
    begin = now + limits.start_s + limits.overhead_s
    surely = begin + limits.surely_s
    for entry in queue:
        if entry.deadline <= now:
            expired.append(entry)
            continue
        if not batch:
            finish = begin + curve.mean_s[entry.items] * limits.usual(entry.items)
            if limits.drops_late and finish > entry.deadline:
                late.append(entry)
                continue
        else:
            grown = items + entry.items
            if (
                grown > most
                or len(batch) == limits.max_queries
                or bytes_ + entry.input_bytes > limits.max_bytes
                or (
                    surely > (tight := min(tightest, entry.deadline))
                    and begin + curve.p95_s[grown] * limits.promised(grown) > tight
                )
            ):
                left = entry
                break
        batch.append(entry)
        items += entry.items
        bytes_ += entry.input_bytes
        tightest = min(tightest, entry.deadline)
        if items >= most or len(batch) == limits.max_queries:
            break
    return Formed(batch, items, expired, late, left)


def until(queue: Iterator[E], count: int) -> Iterator[E]:
    """At most `count` of a queue, without taking one more from it."""
    for _ in range(count):
        entry = next(queue, None)
        if entry is None:
            return
        yield entry
