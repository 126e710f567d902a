"""Counters and histograms that cost a query next to nothing: plain numbers, made the library's families at a scrape.

Each of the library's own takes a lock and a microsecond or two to observe, and a query touches half a dozen. These
belong to one event loop, which writes them; a scrape may read them from anywhere and sees every number whole. Where
several processes share a book, each writes its own rows and a scrape of any shows their sums.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from math import inf
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from infaas.observe.book import Book, Cells, OwnBook, sums


class Count:
    """A counter for one set of label values. Who counts very often adds to its only cell."""

    __slots__ = ("cells",)

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    def inc(self, amount: float = 1.0) -> None:
        self.cells[0] += amount


class Spread:
    """A histogram for one set of label values. Its cells: the values' sum, how many were up to each bound and above the
    one before, and how many above all bounds."""

    __slots__ = ("_bounds", "_cells")

    def __init__(self, bounds: Sequence[float], cells: Cells) -> None:
        self._bounds = (-inf, *bounds)  # so that a place among them is the cell's
        self._cells = cells

    def observe(self, value: float, times: int = 1) -> None:
        """The same value, so many times."""
        cells = self._cells
        cells[bisect_left(self._bounds, value)] += times
        cells[0] += value * times

    @property
    def counts(self) -> list[float]:
        return [self._cells[place] for place in range(1, len(self._cells))]

    @property
    def total(self) -> float:
        return self._cells[0]


Child = TypeVar("Child")


class Series(Collector, Generic[Child]):
    """A metric with labels. Asking for a set of values creates it."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        text: str,
        labels: Sequence[str],
        width: int,
        book: Book | None,
    ) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._width = width
        self._book = OwnBook() if book is None else book
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
            found = self._children[values] = self.new(self._book.cells(self._name, values, self._width))
        return found

    def totals(self) -> dict[tuple[str, ...], list[float]]:
        """By values of the labels, over all processes that share the book."""
        return sums(self._book.rows(self._name))

    @abstractmethod
    def new(self, cells: Cells) -> Child:
        """What observes into these."""

    @abstractmethod
    def describe(self) -> Sequence[Metric]:
        """Its family, empty."""


class CountSeries(Series[Count]):
    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str], *, book: Book | None = None
    ) -> None:
        super().__init__(registry, name, text, labels, 1, book)

    def new(self, cells: Cells) -> Count:
        return Count(cells)

    def describe(self) -> Sequence[Metric]:
        return [CounterMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Sequence[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, (count,) in self.totals().items():
            family.add_metric(values, count)
        return [family]


class SpreadSeries(Series[Spread]):
    """`bounds` are the buckets' upper ones, ascending."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        *,
        book: Book | None = None,
    ) -> None:
        self._bounds = tuple(bounds)
        super().__init__(registry, name, text, labels, len(self._bounds) + 2, book)

    def new(self, cells: Cells) -> Spread:
        return Spread(self._bounds, cells)

    def describe(self) -> Sequence[Metric]:
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Sequence[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        words = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, (total, *counts) in self.totals().items():
            so_far = 0.0
            buckets: list[tuple[str, float]] = []
            for word, count in zip(words, counts, strict=True):
                so_far += count
                buckets.append((word, so_far))
            family.add_metric(values, buckets, total)
        return [family]
