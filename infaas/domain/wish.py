"""What a controller tells a worker of the queries that it sends there: which other variants they would have taken.

A worker sees batches for the variants that it holds, and could not tell otherwise whether another one would do.
"""

from __future__ import annotations

from dataclasses import dataclass

from infaas.domain.ids import VariantName
from infaas.domain.variant import Variant

ALTERNATIVES = 12
"""At most so many are told of, for each variant."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Of all queries that were sent to one variant in the time that the wishes are of."""

    variant: VariantName
    admitted: tuple[VariantName, ...]
    """Others that every one of these queries admits."""
    items: int
    queries: int
    latency_s: float
    """The tightest objective that was seen among them."""


@dataclass(frozen=True, slots=True)
class Wishes:
    wishes: tuple[Wish, ...] = ()
    variants: tuple[Variant, ...] = ()
    """Whole, the alternatives that are named above."""
