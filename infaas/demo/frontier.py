"""The latency-accuracy-cost frontier as a picture: every variant a dot, the ones worth choosing joined by a line."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from infaas.control import VariantDocument

CLASSES = 4
"""Cost classes, each a colour and a size."""
COLOURS = ("#2a9d8f", "#e9b44c", "#e76f51", "#9b2226")
LINE_COLOUR = "#1d3557"
RADII = (5, 7, 9, 11)
GUIDES_MS = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
    200.0,
    500.0,
    1000.0,
)


@dataclass(frozen=True, slots=True)
class Dot:
    name: str
    latency_ms: float
    accuracy: float
    cost: float
    is_on_frontier: bool


def dots(variants: Sequence[VariantDocument]) -> list[Dot]:
    """The measured variants, fastest first."""
    found = [
        Dot(v.name, v.p50_ms, v.accuracy.value, v.cost_usd_per_1k, v.is_on_frontier)
        for v in variants
        if v.p50_ms and v.accuracy is not None and v.cost_usd_per_1k is not None
    ]
    return sorted(found, key=lambda dot: (dot.latency_ms, -dot.accuracy, dot.name))


def steps(points: Sequence[Dot]) -> list[Dot]:
    """The staircase: each dot is more accurate than every faster one."""
    best, found = -math.inf, []
    for dot in points:
        if dot.accuracy > best:
            best = dot.accuracy
            found.append(dot)
    return found


def cost_classes(points: Sequence[Dot]) -> list[tuple[float, float]]:
    """Bounds of equal width on the logarithm, since costs span orders of magnitude."""
    low = min(dot.cost for dot in points)
    high = max(dot.cost for dot in points)
    ratio = (high / low) ** (1 / CLASSES) if high > low > 0 else 1.0
    if ratio == 1.0:
        return [(low, high)]
    return [(low * ratio**n, low * ratio ** (n + 1)) for n in range(CLASSES)]


def draw(variants: Sequence[VariantDocument], title: str, file: Path) -> None:
    """Write the picture as SVG. Raises ValueError when nothing was measured."""
    points = dots(variants)
    if not points:
        raise ValueError("there is no measured variant to draw")
    chart = _chart(points, title)
    classes = cost_classes(points)
    line = steps(points)
    chart.add(
        "most accurate within this latency",
        [{"value": _at(dot), "label": name} for dot, name in zip(line, _names(line), strict=True)],
        stroke=True,
        dots_size=2,
        stroke_style={"width": 2, "dasharray": "6, 4"},
    )
    for number, (low, high) in enumerate(classes):
        is_last = number == len(classes) - 1
        members = [dot for dot in points if low <= dot.cost and (is_last or dot.cost < high)]
        if members:
            chart.add(
                f"{_usd(1000 * low)} to {_usd(1000 * high)} USD per million",
                [{"value": _at(dot), "node": {"r": RADII[number]}} for dot in members],
                stroke=False,
                dots_size=RADII[number],
            )
    file.write_bytes(chart.render())


def short_name(variant: str) -> str:
    """`digits-cnn-small.v1.ort-int8-t1` as `digits-cnn-small ort-int8-t1`: the version says nothing here."""
    model, dot, recipe = variant.rpartition(".")
    model = model.rpartition(".v")[0] or model
    return f"{model} {recipe}" if dot else variant


def _chart(points: Sequence[Dot], title: str) -> Any:
    pygal = charting()
    style = pygal.style.Style(
        background="white",
        plot_background="#fbfbfa",
        foreground="#333333",
        foreground_strong="#111111",
        foreground_subtle="#cccccc",
        guide_stroke_color="#e2e2e0",
        major_guide_stroke_color="#d0d0cc",
        opacity=".85",
        opacity_hover="1",
        colors=(LINE_COLOUR, *COLOURS),
        font_family="DejaVu Sans, Helvetica, Arial, sans-serif",
        title_font_size=20,
        label_font_size=13,
        major_label_font_size=13,
        legend_font_size=13,
        value_label_font_size=11,
        value_font_size=11,
    )
    # To the right of the last dot there is room for its name.
    low, high = points[0].latency_ms / 1.6, points[-1].latency_ms * 6
    bottom = math.floor(100 * min(dot.accuracy for dot in points)) - 1
    top = min(100, math.ceil(100 * max(dot.accuracy for dot in points)) + 1)
    guides = [guide for guide in GUIDES_MS if low <= guide <= high]
    return pygal.XY(
        width=1100,
        height=700,
        style=style,
        title=title,
        x_title="latency at batch 1, p50, milliseconds (logarithmic)",
        y_title="measured accuracy, %",
        legend_at_bottom=True,
        legend_at_bottom_columns=3,
        legend_box_size=12,
        show_x_guides=True,
        show_y_guides=True,
        xrange=(_x(low), _x(high)),
        range=(bottom, top),
        x_labels=[{"label": f"{guide:g}", "value": _x(guide)} for guide in guides],
        y_labels=list(range(bottom, top + 1, _stride(top - bottom))),
        truncate_legend=-1,
        truncate_label=-1,
        print_values=False,
        print_labels=True,
        js=(),
        explicit_size=True,
        margin=24,
        margin_bottom=40,
    )


def charting() -> Any:
    """The library without its import hook: it finds map plug-ins only, and Python warns about its old form at every
    import that follows, in the whole process."""
    import pygal
    import pygal.style

    sys.meta_path[:] = [hook for hook in sys.meta_path if type(hook).__module__ != pygal.__name__]
    return pygal


def _at(dot: Dot) -> tuple[float, float]:
    return _x(dot.latency_ms), 100 * dot.accuracy


def _x(latency_ms: float) -> float:
    """The logarithm, moved away from 0, where the chart would draw a line of its own."""
    return math.log10(latency_ms) + 10


def _names(line: Sequence[Dot]) -> list[str | None]:
    """One name per model: at its most accurate dot, since its others lie close by."""
    last = {dot.name.rpartition(".")[0]: dot for dot in line}
    return [short_name(dot.name) if last[dot.name.rpartition(".")[0]] is dot else None for dot in line]


def _usd(value: float) -> str:
    """One significant digit, without an exponent."""
    return format(Decimal(f"{value:.1g}"), "f")


def _stride(span: int) -> int:
    return 1 if span <= 12 else 2 if span <= 24 else 5
