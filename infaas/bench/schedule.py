"""When queries of an open loop leave: a renewal process by seed, or the arrivals of a trace.

A schedule is fixed before the first query leaves. What becomes of one query never moves another, so a system that
stalls is measured by everybody who would have come meanwhile (no coordinated omission).
"""

from __future__ import annotations

import csv
import itertools
import math
import random
from collections.abc import Iterator, Sequence

from infaas.errors import InvalidError

MINUTE_S = 60.0


def arrivals(rate: float, seconds: float, seed: int, burstiness: float = 1.0) -> Iterator[float]:
    """Moments within `seconds` at `rate` per second: gaps are gamma distributed with `burstiness` as their squared
    coefficient of variation. 1 is a Poisson process, more comes in bursts, less is more even."""
    draw = random.Random(seed)
    at = _gap(draw, burstiness) / rate
    while at < seconds:
        yield at
        at += _gap(draw, burstiness) / rate


def read_trace(text: str, seed: int, burstiness: float = 1.0) -> tuple[float, ...]:
    """A trace is a CSV of one of two kinds, with or without a line of headings; `#` begins a remark.

    Offsets: the first column says when a query leaves, in seconds since the beginning, never decreasing. Counts: the
    first heading is `minute`, the other columns hold how many queries come in that minute; columns are summed, lines of
    the same minute too, in whatever order they stand. A minute's queries are spread over it as `arrivals` spreads them,
    and the earliest minute is the beginning. Raises InvalidError naming the line that is wrong.
    """
    lines = enumerate(text.splitlines(), start=1)
    rows = [(number, next(csv.reader([line]))) for number, line in lines if line.strip() and line.lstrip()[0] != "#"]
    if not rows:
        raise InvalidError("the trace is empty")
    headings = [cell.strip().lower() for cell in rows[0][1]]
    has_headings = not any(_is_number(cell) for cell in headings)
    if headings[0] == "minute":
        counts = [(_cell(number, row, 0), _counted(number, row)) for number, row in rows[1:]]
        return tuple(sorted(_spread(counts, random.Random(seed), burstiness)))
    offsets = [_cell(number, row, 0) for number, row in rows[has_headings:]]
    for (number, _), before, after in zip(rows[has_headings + 1 :], offsets, offsets[1:], strict=False):
        if after < before:
            raise InvalidError(f"line {number} of the trace: {after:g} s comes after {before:g} s; offsets never fall")
    return tuple(offsets)


def played(schedule: Sequence[float], *, speed: float, seconds: float | None, count: int | None) -> tuple[float, ...]:
    """A schedule `speed` times as fast, up to `seconds` of that and `count` queries."""
    faster = (at / speed for at in schedule)
    within = (at for at in faster if seconds is None or at < seconds)
    return tuple(within if count is None else itertools.islice(within, count))


def rate_of(schedule: Sequence[float]) -> float | None:
    """Queries per second up to the last one; None where all are due at the beginning."""
    return len(schedule) / schedule[-1] if schedule and schedule[-1] > 0 else None


def _gap(draw: random.Random, burstiness: float) -> float:
    """With mean 1."""
    if burstiness == 1.0:
        return draw.expovariate(1.0)
    return draw.gammavariate(1.0 / burstiness, burstiness)


def _spread(counts: Sequence[tuple[float, int]], draw: random.Random, burstiness: float) -> Iterator[float]:
    """Gaps scaled to fill their minute: of a Poisson process that is exactly its law, given the count."""
    first = min((minute for minute, _ in counts), default=0.0)
    for minute, count in counts:
        gaps = [_gap(draw, burstiness) for _ in range(count + 1)]
        scale = MINUTE_S / math.fsum(gaps)
        begin = (minute - first) * MINUTE_S
        last = math.nextafter(begin + MINUTE_S, begin)  # a last gap of next to nothing is lost in rounding
        for at in itertools.accumulate(gaps[:-1]):
            yield min(begin + at * scale, last)


def _counted(number: int, row: Sequence[str]) -> int:
    if len(row) < 2:
        raise InvalidError(f"line {number} of the trace: a minute needs at least one count")
    counts = [_cell(number, row, column) for column in range(1, len(row))]
    if any(count != int(count) for count in counts):
        raise InvalidError(f"line {number} of the trace: counts are whole numbers")
    return int(math.fsum(counts))


def _cell(number: int, row: Sequence[str], column: int) -> float:
    text = row[column].strip()
    if not _is_number(text) or not (0 <= float(text) < math.inf):
        raise InvalidError(f"line {number} of the trace: {text!r} is not a number from 0")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
