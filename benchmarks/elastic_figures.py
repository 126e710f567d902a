"""From what callers and the fleet showed to what `elastic.py` says: pure arithmetic on moments and counts.

All times are seconds since the beginning of the trace.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from infaas.domain.query import Code
from infaas.testing.clairvoyant import per_second, worker_seconds
from infaas.testing.load import OK, Outcome, Shot

REFUSALS = frozenset({Code.SATURATED.value, Code.DEADLINE_UNREACHABLE.value, Code.NO_WORKER.value, Code.LOADING.value})
"""Told at once, with the reason, before anything was done for the query. They count against the objective."""
SETTLING_S = 10.0
"""After each step; outside of these the attainment must be higher."""
LEAST_ATTAINMENT = 0.97
LEAST_ATTAINMENT_SETTLED = 0.99
MOST_OF_CLAIRVOYANT = 1.3


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of the fleet at one moment."""

    at_s: float
    paid: int
    """Workers that were ordered and are not gone."""
    serving: int
    """That can answer a query at once."""
    demand_cores: float | None = None
    """Work that comes each second, as the leader saw it last."""
    wanted_cores: float | None = None


@dataclass(slots=True)
class Coming:
    """How one worker of the fleet came to be of use. None: that was not seen."""

    worker: str
    ordered_s: float
    connected_s: float | None = None
    serving_s: float | None = None
    """The variant that is asked for was READY there."""
    answered_s: float | None = None
    """It had run something."""

    @property
    def startup_s(self) -> float | None:
        return None if self.connected_s is None else self.connected_s - self.ordered_s


@dataclass(frozen=True, slots=True)
class Trace:
    """What is asked for: so many seconds at each multiple of one worker's capacity, one after the other."""

    schedule: Sequence[float]
    """When queries are due; those before 0 warm the system up and count nowhere."""
    capacity: float
    """Queries a second of one worker."""
    held_s: float
    multiples: Sequence[float]

    @property
    def seconds(self) -> float:
        return self.held_s * len(self.multiples)

    @property
    def steps_s(self) -> list[float]:
        return [self.held_s * number for number in range(1, len(self.multiples))]

    def counts(self) -> list[int]:
        return per_second([due for due in self.schedule if due >= 0.0], math.ceil(self.seconds))


@dataclass(frozen=True, slots=True)
class Arm:
    """One fleet under the trace."""

    name: str
    is_scaled: bool
    """It follows the load; else the number of its workers is fixed."""
    outcome: Outcome
    """Of the queries of the trace."""
    sights: Sequence[Sight]
    coming: Sequence[Coming] = ()
    steps: Sequence[Mapping[str, object]] = ()
    """As the system keeps them."""
    notes: Mapping[str, float] = field(default_factory=dict)


def is_on_time(shot: Shot, deadline_s: float) -> bool:
    return shot.code == OK and shot.took_s <= deadline_s


def attainment(shots: Sequence[Shot], deadline_s: float) -> float:
    """Share of all queries that were answered on time; NaN of none."""
    return sum(is_on_time(shot, deadline_s) for shot in shots) / len(shots) if shots else math.nan


def settled(shots: Sequence[Shot], steps_s: Sequence[float]) -> list[Shot]:
    """Those that were not due within `SETTLING_S` after a step."""
    return [shot for shot in shots if not any(at <= shot.due_s < at + SETTLING_S for at in steps_s)]


def lost(shots: Sequence[Shot]) -> Counter[str]:
    """By cause: queries that were neither answered nor refused with the reason; late ones (504) are among them."""
    return Counter(shot.code for shot in shots if shot.code != OK and shot.code not in REFUSALS)


def departures(steps: Sequence[Mapping[str, object]], seconds: float) -> list[tuple[float, float]]:
    """Of each worker that was given back within the trace: when it was told to drain, and when it was taken away."""
    removed = {step["worker"]: step["at_s"] for step in steps if step["action"] == "remove"}
    found = []
    for step in steps:
        began = step["at_s"]
        assert isinstance(began, float)
        ended = removed.get(step["worker"], seconds)
        assert isinstance(ended, float)
        if step["action"] == "drain" and 0.0 <= began < seconds:
            found.append((began, ended))
    return found


def in_flight(shots: Sequence[Shot], departed: Sequence[tuple[float, float]]) -> list[Shot]:
    """Those that were on their way at any moment of these."""
    return [shot for shot in shots if any(shot.due_s <= end and shot.ended_s >= begin for begin, end in departed)]


def paid_worker_seconds(sights: Sequence[Sight], seconds: float) -> float:
    """Between two looks there were as many as at the first of them; before the first look as many as then."""
    if not sights:
        return math.nan
    at = [0.0, *[min(max(sight.at_s, 0.0), seconds) for sight in sights[1:]], seconds]
    return sum(sight.paid * (after - before) for sight, (before, after) in zip(sights, pairwise(at), strict=True))


def startup_s(coming: Sequence[Coming]) -> float:
    """The median, from the order until it was READY; NaN when none came."""
    known = sorted(one.startup_s for one in coming if one.startup_s is not None)
    return known[len(known) // 2] if known else math.nan


def fewest_worker_seconds(trace: Trace, start_s: float) -> float:
    return worker_seconds(trace.counts(), trace.capacity, start_s)


def figures(arm: Arm, trace: Trace, fewest: float) -> dict[str, object]:
    """What is said of an arm. `fewest`: worker-seconds of whoever knows the trace."""
    shots, deadline_s = arm.outcome.shots, arm.outcome.deadline_s
    paid = paid_worker_seconds(arm.sights, trace.seconds)
    phases = []
    for number, multiple in enumerate(trace.multiples):
        begins = number * trace.held_s
        own = [shot for shot in shots if begins <= shot.due_s < begins + trace.held_s]
        phases.append({"load": multiple, **_seen(own, deadline_s)})
    departed = departures(arm.steps, trace.seconds)
    near = in_flight(shots, departed)
    return {
        "arm": arm.name,
        **_seen(shots, deadline_s),
        "attainment_settled": attainment(settled(shots, trace.steps_s), deadline_s),
        "lost": dict(lost(shots)),
        "departures": len(departed),
        "in_flight_on_scale_down": len(near),
        "lost_on_scale_down": dict(lost(near)),
        "hung": arm.outcome.hung,
        "worker_seconds": paid,
        "of_clairvoyant": paid / fewest if fewest else math.nan,
        "most_workers": max((sight.paid for sight in arm.sights), default=0),
        "fewest_workers": min((sight.paid for sight in arm.sights), default=0),
        "phases": phases,
        **arm.notes,
    }


def _seen(shots: Sequence[Shot], deadline_s: float) -> dict[str, object]:
    outcome = Outcome(tuple(shots), deadline_s)
    return {
        "queries": len(shots),
        "attainment": attainment(shots, deadline_s),
        "failed": dict(outcome.failed),
        "p50_s": outcome.percentile_s(0.5),
        "p95_s": outcome.percentile_s(0.95),
        "p99_s": outcome.percentile_s(0.99),
    }


def broken(seen: Mapping[str, object]) -> list[str]:
    """Every bound that the fleet which follows the load did not keep, in words."""
    found = []
    for name, least in (("attainment", LEAST_ATTAINMENT), ("attainment_settled", LEAST_ATTAINMENT_SETTLED)):
        share = seen[name]
        assert isinstance(share, float)
        if not share >= least:
            where = "over the run" if name == "attainment" else f"outside {SETTLING_S:g} s after each step"
            found.append(f"{share:.2%} of the queries were answered on time {where}, less than {least:.0%}")
    gone = seen["lost_on_scale_down"]
    assert isinstance(gone, dict)
    found.extend(f"{count} queries ended as {code} while workers went" for code, count in sorted(gone.items()))
    share = seen["of_clairvoyant"]
    assert isinstance(share, float)
    if not share <= MOST_OF_CLAIRVOYANT:
        found.append(
            f"{share:.2f} times the worker-seconds that knowing the trace takes, more than {MOST_OF_CLAIRVOYANT:g}"
        )
    return found


def attainment_over_time(outcome: Outcome, seconds: float, bin_s: float) -> list[tuple[float, float]]:
    """Percent of each `bin_s`, at its middle."""
    bins: dict[int, list[Shot]] = {}
    for shot in outcome.shots:
        bins.setdefault(int(shot.due_s / bin_s), []).append(shot)
    return [
        ((number + 0.5) * bin_s, 100.0 * attainment(shots, outcome.deadline_s))
        for number, shots in sorted(bins.items())
        if number * bin_s < seconds
    ]
