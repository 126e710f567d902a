"""Counters and histograms that cost a query next to nothing: plain numbers, made the library's families at a scrape.

The library's own observe under a lock each and take a microsecond or two; a query touches half a dozen. These belong to
one event loop, which writes them; a scrape may read them from anywhere and sees every number whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString


class Count:
    """A counter for one set of label values."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class Spread:
    """A histogram for one set of label values."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values up to each bound and above the one before; the last holds what is above all."""
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """The same value, so many times."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.total += value * times


class CountSeries(Collector):
    """A counter with labels. Asking for a set of values creates it."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], Count] = {}
        if not labels:
            self.of()
        registry.register(self)

    def of(self, *values: str) -> Count:
        found = self._children.get(values)
        if found is None:
            _check(self._name, self._labels, values)
            found = self._children[values] = Count()
        return found

    def describe(self) -> Sequence[Metric]:
        return [CounterMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Sequence[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, child in list(self._children.items()):
            family.add_metric(values, child.value)
        return [family]


class SpreadSeries(Collector):
    """A histogram with labels and these upper bounds, ascending. Asking for a set of values creates it."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._bounds = tuple(bounds)
        self._children: dict[tuple[str, ...], Spread] = {}
        if not labels:
            self.of()
        registry.register(self)

    def of(self, *values: str) -> Spread:
        found = self._children.get(values)
        if found is None:
            _check(self._name, self._labels, values)
            found = self._children[values] = Spread(self._bounds)
        return found

    def describe(self) -> Sequence[Metric]:
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Sequence[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        words = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, child in list(self._children.items()):
            so_far = 0
            buckets: list[tuple[str, float]] = []
            for word, count in zip(words, child.counts, strict=True):
                so_far += count
                buckets.append((word, so_far))
            family.add_metric(values, buckets, child.total)
        return [family]


def _check(name: str, labels: Sequence[str], values: Sequence[str]) -> None:
    if len(values) != len(labels):
        raise ValueError(f"metric {name!r} has the labels {', '.join(labels) or 'none'}; got {len(values)} values")
