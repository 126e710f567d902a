"""Figures as people read them: one Markdown table a question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; all but the first are figures and stand to the right."""
    widths = [max(len(row[n]) for row in (headings, *rows)) for n in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|"
        + "|".join(("-" * (width + 2)) if n == 0 else "-" * (width + 1) + ":" for n, width in enumerate(widths))
        + "|"
    )
    return "\n".join([line(headings), rule, *(line(row) for row in rows)])


def count(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.0f}"


def times(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.2f}×"


def share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def milliseconds(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1e3:.2f}"


def microseconds(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1e6:.1f}"


def parts(seconds_of: Mapping[str, float], least: float) -> str:
    """Largest first; what is less than `least` seconds is left out, and a single part is the whole."""
    shown = sorted(((value, name) for name, value in seconds_of.items() if value >= least), reverse=True)
    return " + ".join(f"{name} {value * 1e6:.0f}" for value, name in shown) if len(seconds_of) > 1 else ""


def seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "not within the run" if math.isinf(value) else f"{value:.2f}"
