"""Where counters are kept: rows of numbers, each under the name of its series and the values of its labels.

A lone process keeps them to itself. Processes that are one program to the outside keep them in memory that all of them
read and that outlives each (`infaas.processes.numbers`), so that whichever is asked answers for all, the dead included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

Values = tuple[str, ...]


class Cells(Protocol):
    """A row of numbers that its owner changes in place. Both of a list and of a `memoryview` of doubles it is true."""

    def __getitem__(self, place: int, /) -> float: ...

    def __setitem__(self, place: int, value: float, /) -> None: ...

    def __len__(self) -> int: ...


class Book(Protocol):
    def cells(self, series: str, values: Values, width: int) -> Cells:
        """This process's own row, made of zeros when it is new. Ask once and keep it: asking costs more than counting.

        Raises ValueError for a row that is there with another width.
        """

    def rows(self, series: str) -> Iterable[tuple[Values, Cells]]:
        """Of all processes: the same values come once for each that has them."""

    def forget(self, series: str, is_kept: Callable[[Values], bool]) -> None:
        """Take away this process's own rows of which nobody will ask again; the other processes forget theirs. What was
        given out for them must not be counted in any more: another row may be there."""


class OwnBook:
    """Of a process that is alone."""

    def __init__(self) -> None:
        self._series: dict[str, dict[Values, list[float]]] = {}

    def cells(self, series: str, values: Values, width: int) -> Cells:
        rows = self._series.setdefault(series, {})
        found = rows.get(values)
        if found is None:
            found = rows[values] = [0.0] * width
        if len(found) != width:
            raise ValueError(f"series {series!r} has rows of {len(found)} numbers, not {width}")
        return found

    def rows(self, series: str) -> Iterable[tuple[Values, Cells]]:
        return list(self._series.get(series, {}).items())

    def forget(self, series: str, is_kept: Callable[[Values], bool]) -> None:
        rows = self._series.get(series, {})
        for values in [values for values in rows if not is_kept(values)]:
            del rows[values]


def sums(rows: Iterable[tuple[Values, Cells]]) -> dict[Values, list[float]]:
    """Rows of the same values added up, in the order in which the values first came."""
    found: dict[Values, list[float]] = {}
    for values, cells in rows:
        before = found.get(values)
        if before is None:
            found[values] = [cells[place] for place in range(len(cells))]
        else:
            for place in range(len(cells)):
                before[place] += cells[place]
    return found
