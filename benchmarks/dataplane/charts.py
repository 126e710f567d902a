"""Figures as pictures: SVG, made by the library that draws the demo's frontier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from infaas.demo.frontier import charting

Points = Sequence[tuple[float, float]]
COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#7d5ba6", "#4c4c4c", "#00798c", "#a0522d", "#8d96a3")
_DECADES = (1, 2, 5)


def bars(title: str, y_title: str, names: Sequence[str], groups: Mapping[str, Sequence[float | None]]) -> bytes:
    """A bar per group at each name; None leaves a gap."""
    chart = charting().Bar(**_look(title, y_title), x_labels=list(names), x_label_rotation=20)
    return _drawn(chart, {name: list(values) for name, values in groups.items()})


def stacks(title: str, y_title: str, names: Sequence[str], parts: Mapping[str, Sequence[float]]) -> bytes:
    """At each name one bar of all its parts."""
    chart = charting().StackedBar(**_look(title, y_title), x_labels=list(names), x_label_rotation=20)
    return _drawn(chart, {name: list(values) for name, values in parts.items()})


def lines(title: str, x_title: str, y_title: str, series: Mapping[str, Points], *, top: float | None = None) -> bytes:
    """From 0 on, up to `top` if that is given."""
    more = {} if top is None else {"range": (0, top)}
    chart = charting().XY(**_look(title, y_title), x_title=x_title, include_x_axis=True, dots_size=3, **more)
    return _drawn(chart, {name: _finite(points) for name, points in series.items()})


def curves(title: str, x_title: str, y_title: str, series: Mapping[str, Points]) -> bytes:
    """Both axes logarithmic."""
    logged = {
        name: [(math.log10(x), math.log10(y)) for x, y in _finite(points) if x > 0 and y > 0]
        for name, points in series.items()
    }
    points = [point for one in logged.values() for point in one]
    chart = charting().XY(
        **_look(f"{title} (logarithmic)", y_title), x_title=x_title, dots_size=3,
        x_labels=_guides([x for x, _ in points]), y_labels=_guides([y for _, y in points]),
    )  # fmt: skip
    return _drawn(chart, logged)


def _guides(logs: Sequence[float]) -> list[dict[str, Any]]:
    if not logs:
        return []
    decades = range(math.floor(min(logs)), math.ceil(max(logs)) + 1)
    values = [step * 10.0**decade for decade in decades for step in _DECADES]
    near = [value for value in values if min(logs) - 0.31 <= math.log10(value) <= max(logs) + 0.31]
    return [{"label": f"{value:,.12g}", "value": math.log10(value)} for value in near]


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _drawn(chart: Any, series: Mapping[str, Sequence[Any]]) -> bytes:
    for name, values in series.items():
        chart.add(name, [None if isinstance(value, float) and math.isnan(value) else value for value in values])
    drawn: bytes = chart.render()
    return drawn


def _look(title: str, y_title: str) -> dict[str, Any]:
    style = charting().style.Style(
        background="white", plot_background="#fbfbfa", colors=COLOURS, title_font_size=18, label_font_size=13,
        major_label_font_size=13, legend_font_size=13, font_family="DejaVu Sans, Helvetica, Arial, sans-serif",
    )  # fmt: skip
    return {
        "title": title, "y_title": y_title, "style": style, "width": 1100, "height": 640, "explicit_size": True,
        "js": (), "legend_at_bottom": True, "legend_at_bottom_columns": 4, "truncate_legend": -1,
        "truncate_label": -1, "show_y_guides": True, "margin": 24, "margin_bottom": 40,
    }  # fmt: skip
