"""Which variants of a task are worth having: the frontier over latency, accuracy and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infaas.domain.ids import TaskName, VariantName
from infaas.domain.variant import Variant, VariantState

Point = tuple[float, float, float]
"""Latency, inaccuracy, cost: less is better in each."""


def point_of(variant: Variant) -> Point | None:
    """Latency p50 at batch 1, 1 - accuracy, cost; None when the variant cannot be compared.

    An unknown accuracy counts as none at all: such a variant dominates nobody by an accuracy that nobody measured.
    """
    profile = variant.profile
    if profile is None or variant.state is not VariantState.READY:
        return None
    accuracy = profile.accuracy.value if profile.accuracy is not None else 0.0
    return profile.latency_s(1, "p50_s"), 1.0 - accuracy, profile.cost_usd_per_1k


def dominates(a: Point, b: Point) -> bool:
    """At least as good everywhere and better somewhere."""
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def dominated_by(variants: Sequence[Variant]) -> Mapping[VariantName, VariantName | None]:
    """For every comparable variant, one that dominates it within its task, or None when it is on the frontier.

    The dominator named is on the frontier itself, and is the cheapest such (then the fastest, then by name).
    """
    tasks: dict[TaskName, list[tuple[Point, VariantName]]] = {}
    for variant in variants:
        point = point_of(variant)
        if point is not None:
            tasks.setdefault(variant.task, []).append((point, variant.name))
    found: dict[VariantName, VariantName | None] = {}
    for entries in tasks.values():
        frontier = [e for e in entries if not any(dominates(other, e[0]) for other, _ in entries)]
        frontier.sort(key=lambda e: (e[0][2], e[0][0], e[1]))
        for point, name in entries:
            found[name] = next((other for at, other in frontier if dominates(at, point)), None)
    return found
