"""How the profiler spends its budget: which batch size is measured next, which rounds a stall of the host spoiled,
and when it has seen enough. Pure; times are arguments.

A *round* is a short burst of runs of one batch size. Rounds of all sizes are interleaved, so that whatever drifts
while measuring (clock speed, neighbours, caches) hits all of them alike. A spoiled round is measured again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

ROUND_S = 0.02
ROUND_RUNS = 64
MIN_SAMPLES = 500
MIN_ROUND_COUNT = 3
SMALLEST_SHARE = 3.0
"""How many times another size's time the smallest one gets: most queries run in it and cost is reckoned from it."""
SETTLE_S = 1.0
"""Rounds are spread over at least this long: what holds for a moment only is not a profile."""
REPEAT_SHARE = 0.5
"""Of the budget, for repeating spoiled rounds; on a host that stalls all the time, repeating must end."""
STALL_S = 0.001
STALL_RATIO = 0.25
"""A run is a stall when it is longer than its round's median by this time and by this share of it."""
ABSENT_S = 0.001
ABSENT_RATIO = 0.10


@dataclass(frozen=True, slots=True)
class Tally:
    """What one batch size has so far."""

    rounds: int = 0
    samples: int = 0
    spent_s: float = 0.0
    """In rounds that were not spoiled."""
    spoiled_rounds: int = 0
    spoiled_s: float = 0.0


def next_batch(tallies: Mapping[int, Tally]) -> int:
    """The batch size that has had the least of its share of time, after a few rounds of each."""
    smallest = min(tallies)

    def had(batch: int) -> tuple[bool, float, int]:
        tally = tallies[batch]
        share = SMALLEST_SHARE if batch == smallest else 1.0
        has_some = tally.rounds + tally.spoiled_rounds >= MIN_ROUND_COUNT
        return has_some, (tally.spent_s + tally.spoiled_s) / share, batch

    return min(tallies, key=had)


def round_runs(typical_s: float) -> int:
    """How many runs of that length make a round."""
    return max(1, min(ROUND_RUNS, int(ROUND_S / max(typical_s, 1e-7))))


def why_spoiled(runs_s: Sequence[float], usual_s: float, absent_s: float | None) -> str | None:
    """Why a round must not count; None when it may.

    `usual_s` is the batch size's median over earlier rounds (0: none yet). `absent_s` is for how long the measuring
    thread was not running although it never waits: wall time minus its own processor time. It is None where the
    thread does wait, for others of its pool. A host may stop a processor without showing it in processor time; that
    is seen as a gap far beyond the median.
    """
    middle = min(median(runs_s), usual_s) if usual_s > 0 else median(runs_s)
    longest = max(runs_s)
    if longest > middle + max(STALL_S, STALL_RATIO * middle):
        return f"a run took {longest * 1e3:.2f} ms where {middle * 1e3:.2f} ms are usual"
    if absent_s is not None and absent_s > max(ABSENT_S, ABSENT_RATIO * sum(runs_s)):
        return f"not running for {absent_s * 1e3:.2f} ms of {sum(runs_s) * 1e3:.2f} ms"
    return None


def with_round(tally: Tally, runs_s: Sequence[float], *, is_spoiled: bool) -> Tally:
    time_s = sum(runs_s)
    if is_spoiled:
        return Tally(tally.rounds, tally.samples, tally.spent_s, tally.spoiled_rounds + 1, tally.spoiled_s + time_s)
    return Tally(
        tally.rounds + 1, tally.samples + len(runs_s), tally.spent_s + time_s, tally.spoiled_rounds, tally.spoiled_s
    )


def is_enough(tallies: Mapping[int, Tally], budget_s: float, *, may_end_early: bool = True) -> bool:
    """Enough samples of every batch size, where that ends it, or the budget is spent (but for a few rounds of each
    size at least)."""
    counts = [tally.rounds + tally.spoiled_rounds for tally in tallies.values()]
    if min(counts) < MIN_ROUND_COUNT:
        return False
    spent_s = sum(tally.spent_s for tally in tallies.values())
    spoiled_s = sum(tally.spoiled_s for tally in tallies.values())
    if spent_s >= budget_s or spent_s + spoiled_s >= budget_s * (1 + REPEAT_SHARE):
        return True
    is_settled = spent_s + spoiled_s >= min(SETTLE_S, budget_s)
    return may_end_early and is_settled and all(tally.samples >= MIN_SAMPLES for tally in tallies.values())


def progress(tallies: Mapping[int, Tally], budget_s: float, *, may_end_early: bool = True) -> float:
    """0 to 1, by whichever end is nearer: the budget's, or (where that ends it) enough samples."""
    spent_s = sum(tally.spent_s for tally in tallies.values())
    total_s = spent_s + sum(tally.spoiled_s for tally in tallies.values())
    by_budget = max(spent_s / budget_s, total_s / (budget_s * (1 + REPEAT_SHARE)))
    if not may_end_early:
        return min(1.0, by_budget)
    least = min(tally.samples for tally in tallies.values())
    by_samples = min(least / MIN_SAMPLES, total_s / min(SETTLE_S, budget_s))
    return min(1.0, max(by_budget, by_samples))
