"""What went through the memory that is shared with workers: counted by a controller's links as it goes, shown at a
scrape and to whoever asks about a worker.

A worker has one row of the book, whatever connections to it come and go. Processes of one controller share memory with
it each for itself and add to rows of their own; what is shown is their sum.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from infaas.observe.book import Book, OwnBook, sums
from infaas.rpc.hop.traffic import TRAFFIC_WIDTH, Traffic, TrafficCounts, traffic_in

_SERIES = "shared_memory"


class SharedMemoryTally:
    """Of all workers with which memory was ever shared."""

    def __init__(self, book: Book | None = None) -> None:
        """`book` keeps the numbers; without one, they are this object's own."""
        self._book = OwnBook() if book is None else book

    def of(self, worker: str) -> TrafficCounts:
        """Where this process counts. Asking makes the row, which stays: ask once there is something to count."""
        return TrafficCounts(self._book.cells(_SERIES, (worker,), TRAFFIC_WIDTH))

    def totals(self) -> dict[str, Traffic]:
        """By worker, over all processes that share the book."""
        return {worker: traffic_in(row) for (worker,), row in sums(self._book.rows(_SERIES)).items()}


class SharedMemoryCollector(Collector):
    """Turns a tally into counters."""

    def __init__(self, tally: SharedMemoryTally) -> None:
        self._tally = tally

    def describe(self) -> Sequence[Metric]:
        return _families({})

    def collect(self) -> Sequence[Metric]:
        return _families(self._tally.totals())


def _families(workers: dict[str, Traffic]) -> Sequence[Metric]:
    batches = CounterMetricFamily(
        "infaas_shared_memory_batches",
        "Batches whose tensors went through shared memory",
        labels=["worker", "direction"],
    )
    size = CounterMetricFamily(
        "infaas_shared_memory_bytes", "Of tensors that went through shared memory", labels=["worker", "direction"]
    )
    full = CounterMetricFamily(
        "infaas_shared_memory_full", "Batches that went through the socket for want of room", labels=["worker"]
    )
    for worker, traffic in workers.items():
        batches.add_metric([worker, "inputs"], traffic.sent)
        batches.add_metric([worker, "outputs"], traffic.received)
        size.add_metric([worker, "inputs"], traffic.sent_bytes)
        size.add_metric([worker, "outputs"], traffic.received_bytes)
        full.add_metric([worker], traffic.sent_without_room + traffic.received_without_room)
    return [batches, size, full]
