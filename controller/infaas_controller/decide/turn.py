"""Whose turn it is at an instance with a free slot: which class of waiting queries its next batch is made of.

The highest priority goes first; within one priority whoever was served least where tenants share it, and then the
earliest deadline. Who has waited for a stated part of his time counts as one priority higher, and for as much again as
one more. Such a turn is owed, and every `OWED_EVERY`th batch of an instance pays one: a lower priority is never kept
waiting for ever, and a flood of it takes no more than that from a higher one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

AGEING_SHARE = 0.25
"""A query counts as one priority higher for each such part of its time that it has waited."""
AGEING_S = 2.0
"""Or for each such time, if that is less."""
OWED_EVERY = 10
"""Of the batches of an instance that higher and lower priorities want, how many there are for one that was owed."""


class Head(Protocol):
    """A class, as the query shows it that is next in it."""

    @property
    def rank(self) -> int:
        """0 is the highest priority."""

    @property
    def head_deadline(self) -> float: ...

    @property
    def waiting_since(self) -> float: ...

    @property
    def tag(self) -> float:
        """What the tenant that is next in it was served, compared with others of the same rank."""


H = TypeVar("H", bound=Head)


def turn(heads: Sequence[H], now: float, passed: int) -> tuple[H, int]:
    """Whose turn it is, and how many turns have then passed since one that was owed; `passed`: until now.

    The classes of one rank age together, by the one that has aged most, so that within a rank a later deadline never
    goes first for having waited.
    """
    if len(heads) == 1:
        return heads[0], passed
    ranks = {head.rank for head in heads}
    if len(ranks) == 1:
        return min(heads, key=_order), passed
    highest = min(ranks)
    owed = _owed(heads, highest, now) if passed >= OWED_EVERY - 1 else None
    rank = highest if owed is None else owed
    found = min((head for head in heads if head.rank == rank), key=_order)
    return found, min(passed + 1, OWED_EVERY) if owed is None else 0


def aged_rank(head: Head, now: float) -> int:
    """The rank that it counts as by now."""
    waited_s = now - head.waiting_since
    each_s = min(AGEING_S, AGEING_SHARE * (head.head_deadline - head.waiting_since))
    if waited_s < each_s:
        return head.rank
    return max(0, head.rank - int(waited_s / each_s)) if each_s > 0 else 0


def _owed(heads: Sequence[Head], highest: int, now: float) -> int | None:
    """The lower rank that a turn is owed to: that of the class which has aged most, beyond the others or as far."""
    aged = [head for head in heads if head.rank > highest and aged_rank(head, now) <= highest]
    return min(aged, key=lambda head: (aged_rank(head, now), head.head_deadline)).rank if aged else None


def _order(head: Head) -> tuple[float, float]:
    return head.tag, head.head_deadline
