"""The requirement sets of the demo: what kinds of callers ask, as a pure function of what was measured here.

Numbers that depend on the machine (what is tight, what is cheap, what is impossible) follow from the variants'
profiles, so that the demo asks the same questions on a fast machine and on a slow one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infaas.cli.output import number
from infaas.client import Requirements
from infaas.control import VariantDocument

HOP_MS = 8.0
"""What client, network and two processes may add on a busy small machine."""
ROOM = 2.5
"""How many times its p95 a variant may take before a set calls it late."""
BATCH = 16


@dataclass(frozen=True, slots=True)
class QuerySet:
    """One kind of caller. `share` is its part of all queries; `is_refused`: every query must be refused."""

    name: str
    asks: str
    handle: str
    requirements: Requirements
    share: float
    batch: int = 1
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Corners of what was measured: the fastest, the cheapest and the most accurate variant of the task."""

    fastest: VariantDocument
    cheapest: VariantDocument
    best: VariantDocument


def landmarks(variants: Sequence[VariantDocument]) -> Landmarks:
    """Raises ValueError when no variant was measured."""
    measured = [v for v in variants if v.p95_ms is not None and v.accuracy is not None]
    if not measured:
        raise ValueError("no variant of the task has a profile and an accuracy")
    return Landmarks(
        fastest=min(measured, key=_p95),
        cheapest=min(measured, key=lambda v: v.cost_usd_per_1k or math.inf),
        best=max(measured, key=lambda v: (_accuracy(v), -_p95(v))),
    )


def query_sets(task: str, variants: Sequence[VariantDocument]) -> list[QuerySet]:
    """The sets, in the order they are sent. `variants` are those that serve the task now."""
    marks = landmarks(variants)
    best, tight_ms = _accuracy(marks.best), _round_up(HOP_MS + ROOM * _p95(marks.fastest))
    loose_ms = _round_up(HOP_MS + 2 * ROOM * max(_p95(v) for v in variants if v.p95_ms is not None))
    middle_floor = _floor2((best + _accuracy(marks.fastest)) / 2)
    cap = _round_cost(1.5 * (marks.cheapest.cost_usd_per_1k or 0.0))
    architecture, exact = _architecture(variants, marks), _exact(variants, marks)
    impossible = Requirements(slo_latency_ms=_impossible_ms(variants, best), slo_accuracy_min=_floor3(best))
    return [
        QuerySet("nothing stated", "the defaults", task, Requirements(), 2.0),
        QuerySet(
            "tight latency", f"{number(tight_ms)} ms, any accuracy", task,
            Requirements(slo_latency_ms=tight_ms, slo_accuracy_min=0.0), 2.0,
        ),
        QuerySet(
            "tight and good", f"{number(tight_ms * 2)} ms, accuracy {middle_floor:.2f}", task,
            Requirements(slo_latency_ms=tight_ms * 2, slo_accuracy_min=middle_floor), 2.0,
        ),
        QuerySet(
            "high accuracy", f"accuracy {_floor3(best):.3f}, {number(loose_ms)} ms", task,
            Requirements(slo_latency_ms=loose_ms, slo_accuracy_min=_floor3(best)), 1.0,
        ),
        QuerySet(
            "cheap", f"at most {number(cap)} USD/1k, any accuracy", task,
            Requirements(max_cost=cap, slo_accuracy_min=0.0), 2.0,
        ),
        QuerySet(
            "best in time", f"objective accuracy, {number(tight_ms * 4)} ms", task,
            Requirements(slo_latency_ms=tight_ms * 4, slo_accuracy_min=0.0, objective="accuracy"), 1.0,
        ),
        QuerySet(
            "fastest", f"objective latency, accuracy {middle_floor:.2f}", task,
            Requirements(slo_accuracy_min=middle_floor, objective="latency"), 2.0,
        ),
        QuerySet(
            "impossible", f"{number(impossible.slo_latency_ms)} ms and accuracy {_floor3(best):.3f}", task,
            impossible, 0.5, is_refused=True,
        ),
        QuerySet(
            "fallback", f"{number(tight_ms)} ms, accuracy 1.0 or less if need be", task,
            Requirements(slo_latency_ms=tight_ms, slo_accuracy_min=1.0, fallback=True), 1.0,
        ),
        QuerySet(
            "by architecture", f"{architecture}, {number(loose_ms)} ms", architecture,
            Requirements(slo_latency_ms=loose_ms), 1.0,
        ),
        QuerySet("by variant", exact, exact, Requirements(slo_accuracy_min=0.0), 1.0),
        QuerySet(
            f"batch of {BATCH}", f"accuracy {middle_floor:.2f}, {number(loose_ms)} ms", task,
            Requirements(slo_latency_ms=loose_ms, slo_accuracy_min=middle_floor), 0.5, batch=BATCH,
        ),
    ]  # fmt: skip


def counts(sets: Sequence[QuerySet], total: int) -> list[int]:
    """How many queries each set sends; together close to `total`, none without any."""
    shares = sum(one.share for one in sets)
    return [max(1, round(total * one.share / shares)) for one in sets]


def _architecture(variants: Sequence[VariantDocument], marks: Landmarks) -> str:
    """A model between the extremes: the one whose best accuracy is the median."""
    scores: dict[str, float] = {}
    for one in variants:
        if one.accuracy is not None:
            scores[one.model] = max(scores.get(one.model, 0.0), one.accuracy.value)
    ranked = sorted(scores, key=lambda model: (scores[model], model))
    between = [model for model in ranked if model not in (marks.fastest.model, marks.best.model)]
    return (between or ranked)[len(between or ranked) // 2]


def _exact(variants: Sequence[VariantDocument], marks: Landmarks) -> str:
    """One variant that no other set is sure to pick: the most accurate of those that are not the best model's."""
    others = [v for v in variants if v.model != marks.best.model and v.accuracy is not None and v.p95_ms is not None]
    return max(others or [marks.best], key=lambda v: (_accuracy(v), -_p95(v), v.name)).name


def _impossible_ms(variants: Sequence[VariantDocument], best: float) -> float:
    """Half of what the fastest variant with the best accuracy takes alone, without any hop."""
    takes = [v.p50_ms for v in variants if v.p50_ms is not None and _accuracy(v) >= _floor3(best)]
    return max(0.001, float(f"{min(takes) / 2:.2g}"))


def _p95(variant: VariantDocument) -> float:
    return math.inf if variant.p95_ms is None else variant.p95_ms


def _accuracy(variant: VariantDocument) -> float:
    return 0.0 if variant.accuracy is None else variant.accuracy.value


def _round_up(value_ms: float) -> float:
    """To 5 ms steps: numbers that people would write."""
    return 5.0 * math.ceil(value_ms / 5.0)


def _round_cost(value: float) -> float:
    return float(f"{value:.2g}")


def _floor2(value: float) -> float:
    return math.floor(value * 100) / 100


def _floor3(value: float) -> float:
    return math.floor(value * 1000) / 1000
