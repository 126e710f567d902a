"""Headers, their twins, deadlines and task defaults to requirements."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.domain.ids import TenantName
from infaas.domain.query import AccuracyConfidence, Objective, Priority, Requirements
from infaas.domain.task import TaskDefaults
from infaas.errors import InfaasError, InvalidError, UnsupportedError
from infaas.rpc.requirements import FAR_S, REQUEST_HEADERS, bounded, read_requirements

NONE = TaskDefaults()
FULL = TaskDefaults(80.0, 0.7, 2.0, Objective.ACCURACY, Priority.SHEDDABLE, True, "static")


def test_a_stock_client_gets_the_systems_defaults() -> None:
    assert read_requirements({}, {}, NONE) == Requirements()


def test_absent_values_come_from_the_task() -> None:
    assert read_requirements({}, {}, FULL) == Requirements(
        0.08, 0.7, 2.0, Objective.ACCURACY, Priority.SHEDDABLE, True, policy="static"
    )


def test_every_header_is_read() -> None:
    headers = {
        "x-infaas-slo-latency-ms": "12.5",
        "x-infaas-slo-accuracy-min": "0.93",
        "x-infaas-max-cost": "0.4",
        "x-infaas-objective": "Latency",
        "x-infaas-priority": " critical ",
        "x-infaas-fallback": "allow",
        "x-infaas-explain": "true",
        "x-infaas-tenant": "Team-7",
        "content-type": "application/json",
    }
    assert read_requirements(headers, {}, FULL, accuracy_confidence=AccuracyConfidence.LOWER95) == Requirements(
        0.0125, 0.93, 0.4, Objective.LATENCY, Priority.CRITICAL, True, True, AccuracyConfidence.LOWER95, "static",
        TenantName("Team-7"),
    )  # fmt: skip


def test_every_twin_is_read() -> None:
    parameters: dict[str, Any] = {
        "slo_latency_ms": 12.5,
        "slo_accuracy_min": 0,
        "max_cost": "0.4",
        "objective": "latency",
        "priority": "critical",
        "fallback": True,
        "explain": "true",
        "tenant": "Team-7",
        "somebody_elses": "value",
    }
    assert read_requirements({}, parameters, FULL) == Requirements(
        0.0125, 0.0, 0.4, Objective.LATENCY, Priority.CRITICAL, True, True, policy="static",
        tenant=TenantName("Team-7"),
    )  # fmt: skip


@pytest.mark.parametrize("tenant", ["", " ", "-a", "a b", "a/b", "a, b", "ä", "(others)", "x" * 129])
def test_a_tenant_has_a_name_like_all_names(tenant: str) -> None:
    with pytest.raises(InvalidError, match="header 'x-infaas-tenant' must be a letter or digit"):
        read_requirements({"x-infaas-tenant": tenant}, {}, NONE)
    with pytest.raises(InvalidError, match="parameter 'tenant' must be a letter or digit"):
        read_requirements({}, {"tenant": tenant}, NONE)
    with pytest.raises(InvalidError, match="'tenant' must be"):
        read_requirements({}, {"tenant": 7}, NONE)


def test_a_header_wins_over_its_twin() -> None:
    headers = {"x-infaas-slo-latency-ms": "10", "x-infaas-fallback": "deny"}
    parameters: dict[str, Any] = {"slo_latency_ms": 99, "timeout": 5, "fallback": True}
    found = read_requirements(headers, parameters, NONE)
    assert (found.latency_s, found.fallback) == (0.01, False)


def test_an_explicit_zero_floor_beats_the_tasks() -> None:
    assert read_requirements({"x-infaas-slo-accuracy-min": "0"}, {}, FULL).accuracy_min == 0.0


@pytest.mark.parametrize(("timeout", "expected"), [(50_000, 0.05), ("50000", 0.05), (0, None)])
def test_tritons_timeout_is_in_microseconds_and_zero_is_none(timeout: Any, expected: float | None) -> None:
    assert read_requirements({}, {"timeout": timeout}, NONE).latency_s == expected


def test_the_twin_wins_over_tritons_timeout() -> None:
    assert read_requirements({}, {"timeout": 50_000, "slo_latency_ms": 10}, NONE).latency_s == 0.01


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, Priority.SHEDDABLE),  # the task's default in FULL
        (1, Priority.CRITICAL),
        (2, Priority.STANDARD),
        (3, Priority.SHEDDABLE),
        (4_000_000_000, Priority.SHEDDABLE),
    ],
)
def test_tritons_priorities_are_integers_with_one_the_highest(number: int, expected: Priority) -> None:
    assert read_requirements({}, {"priority": number}, FULL).priority is expected


def test_a_grpc_deadline_is_the_objective_when_none_is_stated_and_bounds_a_stated_one() -> None:
    assert read_requirements({}, {}, FULL, time_remaining_s=0.5).latency_s == 0.5
    headers = {"x-infaas-slo-latency-ms": "100"}
    assert read_requirements(headers, {}, NONE, time_remaining_s=0.5).latency_s == 0.1
    assert read_requirements(headers, {}, NONE, time_remaining_s=0.02).latency_s == 0.02


@pytest.mark.parametrize(
    ("name", "values", "right"),
    [
        ("slo-latency-ms", ["0", "-5", "nan", "inf", "", "fast", "1e400", "1_0", "٣", "99999999999"], "milliseconds"),
        ("slo-accuracy-min", ["-0.1", "1.01", "nan", "95%", ""], "from 0 (no floor) to 1"),
        ("max-cost", ["-1", "inf", "nan", "cheap"], "USD per 1,000"),
        ("objective", ["best", "", "cost,latency"], "'cost', 'accuracy' or 'latency'"),
        ("priority", ["high", "1", ""], "'critical', 'standard' or 'sheddable'"),
        ("fallback", ["yes", "true", ""], "'allow' or 'deny'"),
        ("explain", ["1", "yes", ""], "'true' or 'false'"),
    ],
)
def test_a_malformed_header_is_named_with_what_would_be_right(name: str, values: list[str], right: str) -> None:
    for value in values:
        with pytest.raises(InvalidError) as caught:
            read_requirements({f"x-infaas-{name}": value}, {}, NONE)
        assert f"header 'x-infaas-{name}'" in caught.value.text
        assert right in caught.value.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slo_latency_ms", True),
        ("slo_latency_ms", 0),
        ("slo_accuracy_min", "high"),
        ("max_cost", -1),
        ("objective", 3),
        ("priority", -1),
        ("priority", 1.5),
        ("priority", True),
        ("fallback", 1),
        ("explain", "maybe"),
        ("timeout", -1),
        ("timeout", 1.5),
        ("timeout", "soon"),
    ],
)
def test_a_malformed_parameter_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidError, match=f"parameter '{name}' must be"):
        read_requirements({}, {name: value}, NONE)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        read_requirements({"x-infaas-max-cost": "x", "x-infaas-objective": "y"}, {"slo_latency_ms": "z"}, NONE)
    assert len(caught.value.problems) == 3


def test_an_unknown_header_of_ours_names_the_nearest_known_one() -> None:
    with pytest.raises(InvalidError) as caught:
        read_requirements({"x-infaas-slo-latency": "10"}, {}, NONE)
    assert "unknown header 'x-infaas-slo-latency'" in caught.value.text
    assert "'x-infaas-slo-latency-ms'" in caught.value.text


def test_a_misspelt_parameter_that_can_only_be_ours_is_refused() -> None:
    with pytest.raises(InvalidError, match="nearest known one is 'slo_latency_ms'"):
        read_requirements({}, {"slo_latency": 5}, NONE)


def test_sequences_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="sequence_id"):
        read_requirements({}, {"sequence_id": 7, "sequence_start": True}, NONE)
    read_requirements({}, {"sequence_id": 0, "sequence_start": False}, NONE)


SCALARS = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=20))


@given(
    st.dictionaries(st.sampled_from(REQUEST_HEADERS), st.text(max_size=20)),
    st.dictionaries(
        st.sampled_from(["slo_latency_ms", "slo_accuracy_min", "max_cost", "priority", "timeout"]), SCALARS
    ),
)
def test_whatever_is_sent_is_refused_or_makes_sound_requirements(
    headers: dict[str, str], parameters: dict[str, Any]
) -> None:
    try:
        found = read_requirements(headers, parameters, NONE)
    except InfaasError:
        return
    assert found.latency_s is None or 0 < found.latency_s <= 86_400
    assert found.accuracy_min is None or 0 <= found.accuracy_min <= 1
    assert found.max_cost is None or 0 <= found.max_cost < float("inf")


@given(
    st.sampled_from([{}, {"x-infaas-slo-latency-ms": "80"}, {"x-infaas-objective": "latency"}]),
    st.sampled_from([{}, {"timeout": 50_000}, {"slo_latency_ms": 86_400_000}]),
    st.sampled_from([NONE, FULL]),
    st.none() | st.floats(-1, 1) | st.floats(0, 1e9),
)
def test_what_was_read_once_is_bounded_by_each_calls_deadline_as_if_it_was_read_with_it(
    headers: dict[str, str], parameters: dict[str, Any], defaults: TaskDefaults, remaining_s: float | None
) -> None:
    far_s = None if remaining_s is None else FAR_S
    once = read_requirements(headers, parameters, defaults, time_remaining_s=far_s)
    each = read_requirements(headers, parameters, defaults, time_remaining_s=remaining_s)
    assert bounded(once, remaining_s) == each
    if once == each:
        assert bounded(once, remaining_s) is once
