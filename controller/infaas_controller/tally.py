"""Counters per variant since the controller started: what `GET .../stats` shows.

They are rows of a book, so that processes of one controller show their sums, and none forgets what another counted
before it died, while the variant is in the catalogue.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from infaas.domain.ids import VariantName
from infaas.observe.book import Book, Cells, OwnBook
from infaas_controller.ports import Ended, VariantStats

_SERIES = "stats"
_BATCHES = "stats_of_batches"
_ITEMS, _EXECUTIONS, _SUCCESSES, _FAILURES, _QUEUE_S, _RUN_S, _SUCCESS_S, _FAIL_S, _LAST_AT = range(9)
"""Of a variant's row; all but the last are added up. A batch size's row: how many, and the seconds that they ran."""


class Counts:
    """Of one variant."""

    __slots__ = ("_cells",)

    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    def answered(self, items: int, queue_s: float, run_s: float, total_s: float, wall: float) -> None:
        cells = self._cells
        cells[_ITEMS] += items
        cells[_SUCCESSES] += 1
        cells[_QUEUE_S] += queue_s
        cells[_RUN_S] += run_s
        cells[_SUCCESS_S] += total_s
        cells[_LAST_AT] = wall

    def answered_together(self, ended: Sequence[Ended], run_s: float, now: float, wall: float) -> None:
        """Queries of one batch, all in one moment: `now` on the clock of their arrivals."""
        cells, count = self._cells, len(ended)
        cells[_ITEMS] += sum([each.items for each in ended])
        cells[_SUCCESSES] += count
        cells[_QUEUE_S] += sum([each.queue_s for each in ended])
        cells[_RUN_S] += run_s * count
        cells[_SUCCESS_S] += now * count - sum([each.query.arrived_at for each in ended])
        cells[_LAST_AT] = wall

    def failed(self, total_s: float) -> None:
        self._cells[_FAILURES] += 1
        self._cells[_FAIL_S] += total_s

    def executed(self) -> None:
        self._cells[_EXECUTIONS] += 1


class Tally:
    """Written by the dispatcher only."""

    def __init__(self, book: Book | None = None) -> None:
        self._book = OwnBook() if book is None else book
        self._by_variant: dict[VariantName, Counts] = {}
        self._by_batch: dict[tuple[VariantName, int], Cells] = {}

    def batch_ran(self, variant: VariantName, items: int, run_s: float) -> None:
        self.of(variant).executed()
        batches = self._by_batch.get((variant, items))
        if batches is None:
            batches = self._by_batch[variant, items] = self._book.cells(_BATCHES, (variant, str(items)), 2)
        batches[0] += 1
        batches[1] += run_s

    def forget_but(self, known: Container[VariantName]) -> None:
        """Nobody can ask for the counts of a variant that is no longer in the catalogue, and ever new ones come: what
        this process counted of it is no more. Should it come back, it begins anew."""
        self._by_variant = {name: counts for name, counts in self._by_variant.items() if name in known}
        self._by_batch = {key: counts for key, counts in self._by_batch.items() if key[0] in known}
        for series in (_SERIES, _BATCHES):
            self._book.forget(series, lambda values: VariantName(values[0]) in known)

    def snapshot(self) -> Mapping[VariantName, VariantStats]:
        """Over all processes that share the book."""
        batches: dict[str, dict[int, tuple[int, float]]] = {}
        for (variant, items), cells in self._book.rows(_BATCHES):
            sizes = batches.setdefault(variant, {})
            runs, seconds = sizes.get(int(items), (0, 0.0))
            sizes[int(items)] = (runs + int(cells[0]), seconds + cells[1])
        found: dict[VariantName, list[float]] = {}
        for (name,), cells in self._book.rows(_SERIES):
            totals = found.setdefault(VariantName(name), [0.0] * (_LAST_AT + 1))
            last_at = max(totals[_LAST_AT], cells[_LAST_AT])
            for place in range(_LAST_AT):
                totals[place] += cells[place]
            totals[_LAST_AT] = last_at
        return {name: _stats(totals, batches.get(name, {})) for name, totals in found.items()}

    def of(self, variant: VariantName) -> Counts:
        found = self._by_variant.get(variant)
        if found is None:
            cells = self._book.cells(_SERIES, (variant,), _LAST_AT + 1)
            found = self._by_variant[variant] = Counts(cells)
        return found


def _stats(totals: list[float], batches: dict[int, tuple[int, float]]) -> VariantStats:
    return VariantStats(
        inference_count=int(totals[_ITEMS]),
        execution_count=int(totals[_EXECUTIONS]),
        success_count=int(totals[_SUCCESSES]),
        fail_count=int(totals[_FAILURES]),
        queue_s=totals[_QUEUE_S],
        run_s=totals[_RUN_S],
        success_s=totals[_SUCCESS_S],
        fail_s=totals[_FAIL_S],
        last_inference_at=totals[_LAST_AT],
        batches=batches,
    )
