"""What the controller has seen batches take, and what that says about the next one. Pure; time is an argument.

A profile is measured on cores of its own; a query runs beside the controller, other instances and its own callers. So
two things are learnt. Per variant and size of batch: how long runs take, as a multiple of the profile. Per worker: what
the way there and back adds. Promises are made from high quantiles of a window of both, because a mean promises the
wrong thing to every second query; the work ahead of a query is reckoned with a mean, because in a sum the deviations
cancel out.

What was learnt ages back to the profile while nothing runs: a variant that was once slow and is therefore chosen no
more would otherwise never get the chance to show that it is not.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Container
from dataclasses import dataclass

from infaas.domain.ids import VariantName, WorkerId
from infaas_controller.decide.curve import Curve

DEFAULT_HOP_S = 0.001
"""What the way to a worker and back adds, until it has been observed."""
HOP_BOUNDS_S = (0.00005, 0.02)
PROMISED_QUANTILE = 0.95
WINDOW = 64
PRIOR_WEIGHT = 12
"""The profile counts like so many observations until the window is full of real ones."""
USUAL_WEIGHT = 0.05
PACE_WEIGHT = 0.1
PACE_MARGIN = 0.2
"""A pace is a mean, and whoever admits by a mean admits as many who will be late as who will not. Where more comes than
can be served the queue is full anyway: a margin costs no answer, and spares those at its end from hearing so late."""
FRESH_S = 2.0
HALF_LIFE_S = 5.0
"""After `FRESH_S` without an observation, what was learnt loses half of its weight in each such time."""
SLOWER_BOUND = 4.0
SLOWER_BOUND_S = 0.02
"""A run counts as at most so many times the profile, or this much longer where that is more: a processor that is
shared takes the same few milliseconds from short runs and long ones."""
FASTER_BOUND = 0.5


class Recent:
    """The last values of something noisy, with their quantiles."""

    __slots__ = ("_oldest", "_prior", "_ranked", "_ring")

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._ring = [prior] * PRIOR_WEIGHT
        self._ranked = list(self._ring)
        self._oldest = 0

    def add(self, value: float) -> None:
        if len(self._ring) < WINDOW:
            self._ring.append(value)
        else:
            del self._ranked[bisect_left(self._ranked, self._ring[self._oldest])]
            self._ring[self._oldest] = value
            self._oldest = (self._oldest + 1) % WINDOW
        insort(self._ranked, value)

    def age(self, idle_s: float) -> None:
        """Bring the values as near to the prior as they count after so long a pause."""
        self._ring = [_aged(value, self._prior, idle_s) for value in self._ring]
        self._ranked = sorted(self._ring)

    def quantile(self, share: float) -> float:
        """Rounded down in rank, so that one odd value among few does not make it."""
        return self._ranked[int(share * (len(self._ranked) - 1))]


class Hop:
    """What one worker adds to every query: both ways, both event loops. Outlives its streams."""

    __slots__ = ("_prior_s", "_recent", "least_s", "promised_s", "seen_at")

    def __init__(self, default_s: float) -> None:
        self._prior_s = default_s
        self._recent = Recent(default_s)
        self.promised_s = default_s
        self.least_s = default_s
        """The least that was seen lately: what no query can be faster than."""
        self.seen_at = 0.0

    def add(self, seconds: float, now: float) -> None:
        low, high = HOP_BOUNDS_S
        if now - self.seen_at > FRESH_S:
            self._recent.age(now - self.seen_at)
        self._recent.add(min(high, max(low, seconds)))
        self.promised_s = self._recent.quantile(PROMISED_QUANTILE)
        self.least_s = self._recent.quantile(0.0)
        self.seen_at = now

    def at(self, now: float) -> float:
        idle_s = now - self.seen_at
        return self.promised_s if idle_s <= FRESH_S else _aged(self.promised_s, self._prior_s, idle_s)


class Pace:
    """How fast an instance gets through a queue, all in all: from the end of one batch to the end of the next, while
    there was always more to do. Deadlines may keep batches small; they count then for what they are. Under such a load
    the controller, the way and whoever shares the processor may take longer than the runs do, and neither a profile nor
    a hop says so."""

    __slots__ = ("_items", "_seconds", "_seen_at", "ended_at")

    def __init__(self) -> None:
        self._seconds = self._items = 0.0
        self._seen_at = float("-inf")
        self.ended_at = float("-inf")
        """When the last batch was done."""

    def add(self, items: int, now: float, *, is_full: bool) -> None:
        """A batch is done. `is_full`: it held as many items as pay, or nearly, or left some behind, and the end of the
        batch before it was all that it waited for."""
        if is_full and now > self.ended_at > float("-inf"):
            kept = 1 - PACE_WEIGHT if now - self._seen_at <= FRESH_S else 0.0
            self._seconds = kept * self._seconds + now - self.ended_at
            self._items = kept * self._items + items
            self._seen_at = now
        self.ended_at = now

    def end_of(self, items: int, now: float) -> float:
        """When so many items would be done, those that are on their way among them; at once as far as is known here
        when there was no queue lately."""
        if now - self._seen_at > FRESH_S:
            return now
        return max(now, self.ended_at + (1 + PACE_MARGIN) * items * self._seconds / self._items)


class _Runs:
    """Runs of one variant at about one size, as multiples of its profile's mean and p95."""

    __slots__ = ("_recent", "promised", "seen_at", "usual")

    def __init__(self) -> None:
        self._recent = Recent(1.0)
        self.usual = 1.0
        self.promised = 1.0
        self.seen_at = 0.0

    def add(self, run_s: float, mean_s: float, p95_s: float, now: float) -> None:
        if now - self.seen_at > FRESH_S:
            self.usual = _aged(self.usual, 1.0, now - self.seen_at)
            self._recent.age(now - self.seen_at)
        self.usual += USUAL_WEIGHT * (_bounded(run_s, mean_s) - self.usual)
        self._recent.add(_bounded(run_s, p95_s))
        self.promised = self._recent.quantile(PROMISED_QUANTILE)
        self.seen_at = now


@dataclass(frozen=True, slots=True)
class VariantLoad:
    """What was observed of a variant over its last full second."""

    replicas: int
    outstanding: int
    """Items promised or on their way, now."""
    rate_per_s: float
    """Items done per second."""
    mean_latency_s: float | None
    """At the worker: waiting for its turn and running, per batch; None when nothing ran."""


class Window:
    """Counts of the second that runs and of the one before."""

    __slots__ = ("items", "last_items", "last_runs", "last_seconds", "runs", "seconds", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.items = self.runs = self.last_items = self.last_runs = 0
        self.seconds = self.last_seconds = 0.0

    def roll(self, now: float) -> None:
        age = now - self.since
        if age < 1.0:
            return
        is_next = age < 2.0
        self.last_items, self.last_runs = (self.items, self.runs) if is_next else (0, 0)
        self.last_seconds = self.seconds if is_next else 0.0
        self.items = self.runs = 0
        self.seconds = 0.0
        self.since = self.since + 1.0 if is_next else now


class Observations:
    """Written when batches come back, read by every prediction."""

    def __init__(self, hop_s: float) -> None:
        self._hop_s = hop_s
        self._hops: dict[WorkerId, Hop] = {}
        self._runs: dict[VariantName, dict[int, _Runs]] = {}
        self._windows: dict[VariantName, Window] = {}

    def hop_of(self, worker: WorkerId) -> Hop:
        found = self._hops.get(worker)
        if found is None:
            found = self._hops[worker] = Hop(self._hop_s)
        return found

    def forget_variants_but(self, known: Container[VariantName]) -> None:
        """Variants leave for good; a new version's have names of their own."""
        self._runs = {name: runs for name, runs in self._runs.items() if name in known}
        self._windows = {name: window for name, window in self._windows.items() if name in known}

    def forget_workers_but(self, known: set[WorkerId]) -> None:
        """Workers come and go under ever new names; one that is back under its own finds what it left."""
        self._hops = {worker: hop for worker, hop in self._hops.items() if worker in known}

    @property
    def hops(self) -> int:
        return len(self._hops)

    def ran(self, curve: Curve, items: int, run_s: float, now: float) -> None:
        if items >= len(curve.mean_s) or run_s <= 0:
            return
        sizes = self._runs.setdefault(curve.variant.name, {})
        runs = sizes.get(items.bit_length())
        if runs is None:
            runs = sizes[items.bit_length()] = _Runs()
        runs.add(run_s, curve.mean_s[items], curve.p95_s[items], now)

    def usual(self, variant: VariantName, items: int, now: float) -> float:
        """What a run of so many items takes on average, as a multiple of the profile's mean."""
        sizes = self._runs.get(variant)
        runs = sizes.get(items.bit_length()) if sizes else None
        if runs is None:
            return 1.0
        idle_s = now - runs.seen_at
        return runs.usual if idle_s <= FRESH_S else _aged(runs.usual, 1.0, idle_s)

    def promised(self, variant: VariantName, items: int, now: float) -> float:
        """What 95 % of such runs stay within, as a multiple of the profile's p95."""
        sizes = self._runs.get(variant)
        runs = sizes.get(items.bit_length()) if sizes else None
        if runs is None:
            return 1.0
        idle_s = now - runs.seen_at
        return runs.promised if idle_s <= FRESH_S else _aged(runs.promised, 1.0, idle_s)

    def most_promised(self, variant: VariantName, now: float) -> float:
        """Of all sizes, but at least 1."""
        sizes = self._runs.get(variant)
        return max(1.0, *(self.promised(variant, 1 << (bits - 1), now) for bits in sizes)) if sizes else 1.0

    def least_promised(self, variant: VariantName) -> float:
        """Of all sizes, but at most 1."""
        sizes = self._runs.get(variant)
        return min(1.0, *(runs.promised for runs in sizes.values())) if sizes else 1.0

    def count(self, variant: VariantName, items: int, seconds: float, now: float) -> None:
        """A batch was done: for the variant's load."""
        window = self._windows.get(variant)
        if window is None:
            window = self._windows[variant] = Window(now)
        window.roll(now)
        window.items += items
        window.runs += 1
        window.seconds += seconds

    def load(self, variant: VariantName, replicas: int, outstanding: int, now: float) -> VariantLoad:
        window = self._windows.get(variant)
        if window is None:
            return VariantLoad(replicas, outstanding, 0.0, None)
        window.roll(now)
        mean_s = window.last_seconds / window.last_runs if window.last_runs else None
        return VariantLoad(replicas, outstanding, float(window.last_items), mean_s)


def _bounded(run_s: float, profile_s: float) -> float:
    return min(max(SLOWER_BOUND, 1.0 + SLOWER_BOUND_S / profile_s), max(FASTER_BOUND, run_s / profile_s))


def _aged(value: float, prior: float, idle_s: float) -> float:
    return prior + (value - prior) * math.exp2((FRESH_S - idle_s) / HALF_LIFE_S)
