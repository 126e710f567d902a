"""Which runs are brief: over so soon that to hand them to a thread, and back, costs more than they do."""

from __future__ import annotations

from infaas.domain.variant import Profile

BRIEF_S = 0.000_1
"""No more than the loop takes anyway for what one turn brings in. By the median, which is of the profile's best rounds:
what a busy host adds to a run it adds to the loop as well."""


def brief_items(profile: Profile | None, most: int) -> int:
    """The most items, `most` at the outside, of which a batch and every smaller one are brief; 0: none, or not
    measured."""
    items = 0
    while profile is not None and items < most and profile.latency_s(items + 1, "p50_s") <= BRIEF_S:
        items += 1
    return items
