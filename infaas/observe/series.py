"""Counters and histograms that cost a query next to nothing: plain numbers, made the library's families at a scrape.

Each of the library's own takes a lock and a microsecond or two to observe, and a query touches half a dozen. These
belong to one event loop, which writes them; a scrape may read them from anywhere and sees every number whole.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

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


Child = TypeVar("Child")


class Series(Collector, Generic[Child]):
    """A metric with labels. Asking for a set of values creates it."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str], new: Callable[[], Child]
    ) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._new = new
        self._children: dict[tuple[str, ...], Child] = {}
        if not labels:
            self.of()
        registry.register(self)

    def of(self, *values: str) -> Child:
        """For these values of the labels, in their order. Raises ValueError when there are more or fewer."""
        found = self._children.get(values)
        if found is None:
            if len(values) != len(self._labels):
                labels = ", ".join(self._labels) or "none"
                raise ValueError(f"metric {self._name!r} has the labels {labels}; got {len(values)} values")
            found = self._children[values] = self._new()
        return found

    @abstractmethod
    def describe(self) -> Sequence[Metric]:
        """Its family, empty."""


class CountSeries(Series[Count]):
    def __init__(self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]) -> None:
        super().__init__(registry, name, text, labels, Count)

    def describe(self) -> Sequence[Metric]:
        return [CounterMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Sequence[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, child in list(self._children.items()):
            family.add_metric(values, child.value)
        return [family]


class SpreadSeries(Series[Spread]):
    """`bounds` are the buckets' upper ones, ascending."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._bounds = tuple(bounds)
        super().__init__(registry, name, text, labels, lambda: Spread(self._bounds))

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
