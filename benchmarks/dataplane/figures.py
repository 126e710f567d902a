"""From what was seen to what is said: pure arithmetic on counts and times."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BOUND_SHARE = 0.9
"""A generator that takes more of its core than this may have been the bound."""
NULL_FACTOR = 2.0
"""So many times as fast as the rate that is reported the generator must be able to go."""
OK_STATUS, UNSENT, UNANSWERED = 200, 0, -1
NORMAL_SHARE = 0.95
BIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Round:
    """One system's closed loop in one round."""

    rate: float
    """Right answers per second."""
    programs_cpu_s: Mapping[str, float]
    """Of each of the server's programs, in the window."""
    generator_share: float
    answered: int
    failed: int
    p50_s: float
    p95_s: float

    @property
    def cpu_per_query_s(self) -> float:
        return sum(self.programs_cpu_s.values()) / self.answered if self.answered else float("nan")


@dataclass(frozen=True, slots=True)
class Throughput:
    """Medians over rounds."""

    rate: float
    lowest: float
    highest: float
    cpu_per_query_s: float
    programs_cpu_per_query_s: Mapping[str, float]
    generator_share: float
    p50_s: float
    p95_s: float
    failed: int
    rounds: int


def throughput(rounds: Sequence[Round]) -> Throughput:
    rates = [one.rate for one in rounds]
    return Throughput(
        rate=statistics.median(rates),
        lowest=min(rates),
        highest=max(rates),
        cpu_per_query_s=statistics.median(one.cpu_per_query_s for one in rounds),
        programs_cpu_per_query_s={
            name: statistics.median(one.programs_cpu_s[name] / max(1, one.answered) for one in rounds)
            for name in rounds[0].programs_cpu_s
        },
        generator_share=max(one.generator_share for one in rounds),
        p50_s=statistics.median(one.p50_s for one in rounds),
        p95_s=statistics.median(one.p95_s for one in rounds),
        failed=sum(one.failed for one in rounds),
        rounds=len(rounds),
    )


def ratio(rates: Sequence[float], base: Sequence[float]) -> float | None:
    """The median of the rounds' own ratios: what the host takes, it takes from neighbours in time alike. None where
    there is nothing to compare with."""
    pairs = [one / other for one, other in zip(rates, base, strict=False) if other > 0]
    return statistics.median(pairs) if pairs else None


def why_bound(rate: float, generator_share: float, null_rate: float | None) -> str:
    """Why the generator and not the server may have been the bound; empty when it was not.

    It was not when it drives a server that does nothing at twice the rate that is reported. Where no such server is at
    hand, half of its core that it left idle shows the same.
    """
    if generator_share > BOUND_SHARE:
        return f"generator-bound ({generator_share:.0%} of its core)"
    if null_rate is not None:
        is_bound = rate * NULL_FACTOR > null_rate
        return f"generator-bound (null server {null_rate:,.0f}/s)" if is_bound else ""
    return f"generator-bound? ({generator_share:.0%} of its core)" if generator_share * NULL_FACTOR > 1 else ""


def quantile(values: Sequence[float] | npt.NDArray[np.float64], share: float) -> float:
    """NaN of nothing."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), share)) if len(values) else float("nan")


@dataclass(frozen=True, slots=True)
class Phase:
    """When a load was offered, in seconds since the beginning of a run; arrivals count by when they were due."""

    begins_s: float
    ends_s: float

    @property
    def seconds(self) -> float:
        return self.ends_s - self.begins_s


@dataclass(frozen=True, slots=True)
class Overload:
    """What became of the queries that were due within one phase."""

    offered: int
    on_time: int
    late: int
    refused: int
    unsent: int
    """Given up by their callers before a connection was free."""
    unanswered: int
    on_time_per_s: float
    admitted_p99_s: float
    """Of those answered with a result, from the scheduled moment."""
    refused_p50_s: float
    """From when it was sent."""
    refused_p95_s: float
    stated_p95_s: float
    """Of those that say it, by the server's own account: from when it had read the header."""
    refused_by: Mapping[str, int]
    """The servers' own words for why, or their status where they have none."""
    normal_after_s: float
    """From the end of the phase on; how long it took until callers were served as if nothing had been."""
    statuses: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Refusals:
    """What refused queries were told, one entry per query of the run."""

    reasons: npt.NDArray[np.int16]
    """Positions in `words`."""
    words: Sequence[str]
    stated_s: npt.NDArray[np.float64]
    """Negative where the server does not say how long it took."""


def overload(
    due_s: npt.NDArray[np.float64],
    sent_s: npt.NDArray[np.float64],
    ended_s: npt.NDArray[np.float64],
    statuses: npt.NDArray[np.int16],
    refusals: Refusals,
    phase: Phase,
    deadline_s: float,
) -> Overload:
    """Of a whole run, whose load drops to something bearable when the phase ends."""
    took_s = ended_s - due_s
    within = (due_s >= phase.begins_s) & (due_s < phase.ends_s)
    is_ok = statuses == OK_STATUS
    is_on_time = is_ok & (took_s <= deadline_s)
    is_refused = within & (statuses > 0) & ~is_ok
    refused_s = (ended_s - sent_s)[is_refused]
    stated_s = refusals.stated_s[is_refused]
    known, counts = np.unique(statuses[within], return_counts=True)
    on_time = int(np.sum(within & is_on_time))
    return Overload(
        offered=int(np.sum(within)),
        on_time=on_time,
        late=int(np.sum(within & is_ok & ~is_on_time)),
        refused=int(np.sum(is_refused)),
        unsent=int(np.sum(within & (statuses == UNSENT))),
        unanswered=int(np.sum(within & (statuses == UNANSWERED))),
        on_time_per_s=on_time / phase.seconds,
        admitted_p99_s=quantile(took_s[within & is_ok], 0.99),
        refused_p50_s=quantile(refused_s, 0.5),
        refused_p95_s=quantile(refused_s, 0.95),
        stated_p95_s=quantile(stated_s[stated_s >= 0], 0.95),
        refused_by=_by_word(refusals, statuses, is_refused),
        normal_after_s=normal_after(due_s, is_on_time, phase.ends_s),
        statuses={int(status): int(count) for status, count in zip(known, counts, strict=True)},
    )


def _by_word(refusals: Refusals, statuses: npt.NDArray[np.int16], is_refused: npt.NDArray[np.bool_]) -> dict[str, int]:
    pairs = np.stack([refusals.reasons[is_refused], statuses[is_refused]], axis=1)
    known, counts = np.unique(pairs, axis=0, return_counts=True)
    found: Counter[str] = Counter()
    for (reason, status), count in zip(known, counts, strict=True):
        found[refusals.words[reason] or f"status {status}"] += int(count)
    return dict(found.most_common())


def normal_after(due_s: npt.NDArray[np.float64], is_on_time: npt.NDArray[np.bool_], drop_s: float) -> float:
    """Seconds from the drop to the end of the last quarter of a second in which fewer than 95 % were on time.

    0 when there was none; infinite when the last one with queries is such a one.
    """
    after = due_s >= drop_s
    bins = np.floor((due_s[after] - drop_s) / BIN_S).astype(np.int64)
    if not bins.size:
        return float("nan")
    offered = np.bincount(bins)
    good = np.bincount(bins, weights=is_on_time[after].astype(np.float64))
    bad = np.flatnonzero((offered > 0) & (good < NORMAL_SHARE * offered))
    if not bad.size:
        return 0.0
    return float("inf") if bad[-1] == len(offered) - 1 else float((bad[-1] + 1) * BIN_S)


def two_steps(
    gaps: npt.NDArray[np.float64], *, rate: float, seconds: float, later_rate: float, later_seconds: float
) -> npt.NDArray[np.float64]:
    """A Poisson process of two rates, one after the other, from unit exponential gaps (inverting its mean measure)."""
    mass = np.cumsum(gaps)
    first = rate * seconds
    at = np.where(mass <= first, mass / rate, seconds + (mass - first) / later_rate)
    return at[at < seconds + later_seconds]


def gaps_needed(rate: float, seconds: float, later_rate: float, later_seconds: float) -> int:
    """So many that they reach beyond the end all but surely."""
    mean = rate * seconds + later_rate * later_seconds
    return int(mean + 10 * mean**0.5 + 10)
