from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from infaas.cli.output import number
from infaas.client import Requirements
from infaas.control import VariantDocument
from infaas.demo.frontier import cost_classes, dots, draw, short_name, steps
from infaas.demo.report import Measured, Sent, quantile, result_table, served_by, summarise
from infaas.demo.run import how_many
from infaas.demo.sets import QuerySet, counts, landmarks, query_sets
from infaas.domain.variant import Accuracy


def variant(name: str, p50_ms: float, accuracy: float | None, cost: float, **more: object) -> VariantDocument:
    model = name.partition(".")[0]
    score = None if accuracy is None else Accuracy("accuracy", accuracy, accuracy - 0.01, accuracy + 0.01, 599)
    fields = {
        "name": name, "task": "digits", "model": model, "version": 1, "is_current": True, "recipe": "ort-fp32-t1",
        "runtime": "onnxruntime", "hardware": "cpu", "precision": "fp32", "threads": 1, "max_batch_size": 32,
        "state": "READY", "reason": "", "replicas": 0, "accuracy": score, "p50_ms": p50_ms, "p95_ms": 1.2 * p50_ms,
        "cost_usd_per_1k": cost,
    }  # fmt: skip
    return VariantDocument(**{**fields, **more})


VARIANTS = [
    variant("centroid.v1.a", 0.01, 0.89, 1e-7),
    variant("logistic.v1.a", 0.02, 0.95, 2e-7),
    variant("mlp.v1.a", 0.05, 0.96, 5e-7),
    variant("large.v1.a", 20.0, 0.995, 2e-4),
    variant("large.v1.b", 15.0, 0.993, 3e-4),
]


def test_the_landmarks_are_the_corners_of_what_was_measured() -> None:
    marks = landmarks([*VARIANTS, variant("unscored.v1.a", 0.001, None, 1e-9)])

    assert (marks.fastest.name, marks.cheapest.name, marks.best.name) == ("centroid.v1.a",) * 2 + ("large.v1.a",)


def test_there_are_at_least_eight_different_sets_over_all_three_levels() -> None:
    sets = query_sets("digits", VARIANTS)

    assert len({one.name for one in sets}) == len(sets) >= 8
    assert {"digits", "mlp", "mlp.v1.a"} <= {one.handle for one in sets}
    assert [one.name for one in sets if one.is_refused] == ["impossible"]
    assert [one.batch for one in sets if one.batch > 1] == [16]
    assert sum(one.requirements.fallback is True for one in sets) == 1


def test_no_variant_can_meet_the_impossible_set_and_some_variant_every_other() -> None:
    for one in query_sets("digits", VARIANTS):
        wanted = one.requirements
        able = [
            v
            for v in VARIANTS
            if v.p95_ms is not None
            and v.accuracy is not None
            and (wanted.slo_latency_ms is None or v.p95_ms <= wanted.slo_latency_ms)
            and (wanted.fallback or v.accuracy.value >= (wanted.slo_accuracy_min or 0))
            and (wanted.max_cost is None or (v.cost_usd_per_1k or 0) <= wanted.max_cost)
            and one.handle in ("digits", v.model, v.name)
        ]
        assert bool(able) is not one.is_refused, one.name


def test_queries_are_shared_out_and_no_set_goes_without() -> None:
    sets = query_sets("digits", VARIANTS)

    assert abs(sum(counts(sets, 3000)) - 3000) <= len(sets)
    assert min(counts(sets, 1)) == 1


def test_without_measurements_there_are_no_landmarks() -> None:
    with pytest.raises(ValueError, match="no variant"):
        landmarks([variant("x.v1.a", 1.0, None, 1.0)])


MEASURED = {"good": Measured(0.97, 0.4), "poor": Measured(0.80, 0.1)}


def query_set(**more: object) -> QuerySet:
    fields = {
        "name": "s", "asks": "", "handle": "digits", "share": 1.0,
        "requirements": Requirements(slo_latency_ms=10, slo_accuracy_min=0.9),
    }  # fmt: skip
    return QuerySet(**{**fields, **more})


def test_every_query_stays_in_the_denominator_and_only_answers_count_for_accuracy_and_cost() -> None:
    sent = [
        Sent(5.0, variant="good", correct=1, decision_id="d1"),
        Sent(15.0, variant="good", correct=0),
        Sent(1.0, code="saturated"),
        Sent(2.0, variant="poor", correct=1, fallback="accuracy"),
    ]

    result = summarise(query_set(), sent, MEASURED)

    assert (result.sent, result.answered, result.refused) == (4, 3, {"saturated": 1})
    assert result.on_time_share == 0.5
    assert result.accuracy == 2 / 3
    assert result.cost_usd_per_1k == pytest.approx(0.3)
    assert (result.below_floor, result.fallbacks) == (0, 1)
    assert (result.p50_ms, result.p95_ms) == (5.0, 15.0)
    assert served_by(result) == "good 50%\npoor 25%\nsaturated 25%\n(1 labelled as fallback)"


def test_an_answer_below_the_stated_floor_that_is_no_fallback_is_counted() -> None:
    result = summarise(query_set(), [Sent(1.0, variant="poor"), Sent(1.0, variant="unheard-of")], MEASURED)

    assert result.below_floor == 2


def test_a_set_that_must_be_refused_has_no_share_on_time() -> None:
    result = summarise(query_set(is_refused=True), [Sent(1.0, code="slo-unsatisfiable", decision_id="d")], MEASURED)

    assert (result.on_time_share, result.accuracy, result.p50_ms) == (None, None, None)
    assert result.sample_decision == "d"


def test_quantiles_are_measured_values() -> None:
    assert quantile([], 0.5) is None
    assert quantile([1.0], 0.95) == 1.0
    assert quantile([float(n) for n in range(1, 101)], 0.95) == 95.0
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0


def test_the_frontier_line_rises_with_latency() -> None:
    line = steps(dots([*VARIANTS, variant("forest.v1.a", 0.5, 0.94, 5e-6)]))

    assert [dot.name for dot in line] == ["centroid.v1.a", "logistic.v1.a", "mlp.v1.a", "large.v1.b", "large.v1.a"]


def test_every_dot_falls_into_a_cost_class() -> None:
    points = dots(VARIANTS)
    classes = cost_classes(points)

    assert classes[0][0] == min(dot.cost for dot in points)
    assert classes[-1][1] == pytest.approx(max(dot.cost for dot in points))
    assert cost_classes(points[:1]) == [(1e-7, 1e-7)]


def test_the_picture_is_svg_with_a_dot_per_variant_and_a_name_per_model_on_the_line(tmp_path: Path) -> None:
    file = tmp_path / "frontier.svg"

    draw(VARIANTS, "digits & friends", file)

    text = file.read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "digits &amp; friends" in text
    line = steps(dots(VARIANTS))
    circles = [one for one in root.iter("{http://www.w3.org/2000/svg}circle") if "dot" in one.get("class", "")]
    assert len(circles) == len(VARIANTS) + len(line)
    for name in ("centroid a", "logistic a", "mlp a", "large a"):
        assert name in text
    assert "large b" not in text


def test_a_variant_s_short_name_leaves_the_version_out() -> None:
    assert short_name("digits-cnn.v12.ort-int8-t1") == "digits-cnn ort-int8-t1"
    assert short_name("plain") == "plain"


def test_nothing_measured_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no measured variant"):
        draw([], "x", tmp_path / "f.svg")


def test_fewer_variants_than_usual_are_said_with_the_reason_and_are_no_failure() -> None:
    assert how_many(21, 2) == "21 variants of digits serve now on 2 core(s) (* on the latency-accuracy-cost frontier):"
    assert "16 are usual, two cores make more" in how_many(12, 1)
    assert "`infaas model status MODEL` says what became of the others" in how_many(15, 2)


def test_costs_are_shown_with_three_digits_however_small() -> None:
    sent = [Sent(1.0, variant="mlp.v1.a", correct=1)]
    one = summarise(query_sets("digits", VARIANTS)[0], sent, {"mlp.v1.a": Measured(0.96, 6.6643e-08)})
    (row,) = result_table([one]).rows
    assert "6.66e-08" in row
    cheap = next(one for one in query_sets("digits", VARIANTS) if one.name == "cheap")
    assert cheap.asks == "at most 1.5e-07 USD/1k, any accuracy"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"), (0, "0"), (0.04, "0.04"), (6.66123e-08, "6.66e-08"), (999.6, "1,000"), (549643.7, "549,644"),
        (0.00012345, "0.000123"), (12, "12"),
    ],
)  # fmt: skip
def test_numbers_for_people_keep_three_significant_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown
