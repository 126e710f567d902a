"""What is counted of many answers at once is what would be counted of each."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infaas_controller.queues import Ticket
from infaas_controller.tally import Tally

from infaas.domain.ids import VariantName
from infaas.domain.query import Priority
from infaas.observe.metrics import Account, Metrics
from infaas.testing.builders import a_query

V = VariantName("v1")
NOW = 86_400.0
WALL = 1_750_000_000.0


class Gave(NamedTuple):
    """An answer."""

    total_s: float
    queue_s: float
    items: int


answers = st.lists(st.builds(Gave, st.floats(0, 40), st.floats(0, 40), st.integers(1, 50)), max_size=12)
milliseconds = st.one_of(st.floats(0, 1e5), st.sampled_from([0.0, 1.0, 100.0]))


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def an_account(metrics: Metrics, cost_each: float) -> Account:
    return metrics.account("digits", "v1", Priority.STANDARD, cost_each)


@settings(deadline=None)
@given(answers, st.floats(0, 1), st.sampled_from([0.0, 0.25]))
def test_answers_of_one_batch_count_as_each_of_them(given_: list[Gave], run_s: float, cost_each: float) -> None:
    together, apart = Metrics(), Metrics()
    account = an_account(apart, cost_each)
    for one in given_:
        account.observe(one.total_s, one.queue_s, run_s, one.items)
    an_account(together, cost_each).observe_together(
        [one.total_s for one in given_], [one.queue_s for one in given_], run_s, sum(one.items for one in given_)
    )
    found = samples(together)
    assert found == pytest.approx(samples(apart))
    counted = {name: value for (name, labels), value in found.items() if ("model", "digits") in labels}
    assert counted["infaas_requests_total"] == len(given_)
    assert counted["infaas_request_duration_seconds_count"] == counted["infaas_queue_duration_seconds_count"]


@settings(deadline=None)
@given(st.lists(st.tuples(milliseconds, milliseconds), max_size=12))
def test_predictions_count_together_as_each_of_them(pairs: list[tuple[float, float]]) -> None:
    together, apart = Metrics(), Metrics()
    together.observe_predictions([predicted for predicted, _ in pairs], [observed for _, observed in pairs])
    for predicted, observed in pairs:
        apart.observe_predictions((predicted,), (observed,))
    found = samples(together)
    assert found == pytest.approx(samples(apart))
    name = "infaas_predicted_latency_error_ratio_count"
    of = {dict(labels)["direction"]: value for (each, labels), value in found.items() if each == name}
    wanted = {
        "late": sum(bool(predicted) and observed > predicted for predicted, observed in pairs),
        "early": sum(bool(predicted) and observed <= predicted for predicted, observed in pairs),
    }
    assert of == {direction: count for direction, count in wanted.items() if count}


def test_a_prediction_is_early_or_late_and_one_of_nothing_says_nothing() -> None:
    metrics = Metrics()
    metrics.observe_predictions([10.0, 10.0, 0.0, 10.0], [15.0, 5.0, 7.0, 10.0])
    found = {
        (dict(labels)["direction"], name.rsplit("_", 1)[1]): value
        for (name, labels), value in samples(metrics).items()
        if name.startswith("infaas_predicted_latency_error_ratio_") and not name.endswith("bucket")
    }
    assert found == {("late", "count"): 1, ("late", "sum"): 0.5, ("early", "count"): 2, ("early", "sum"): 0.5}


def test_predictions_and_what_was_observed_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        Metrics().observe_predictions([1.0, 2.0], [1.0])


@given(answers.filter(bool), st.floats(0, 1))
def test_a_variants_answers_of_one_batch_count_as_each_of_them(given_: list[Gave], run_s: float) -> None:
    together, apart = Tally(), Tally()
    ended = []
    for number, one in enumerate(given_):
        ticket = Ticket(number, a_query(at=NOW - one.total_s, items=one.items), None)
        ticket.queue_s = one.queue_s
        ended.append(ticket)
        apart.of(V).answered(one.items, one.queue_s, run_s, one.total_s, WALL)
    together.of(V).answered_together(ended, run_s, NOW, WALL)
    found, wanted = together.snapshot()[V], apart.snapshot()[V]
    assert (found.inference_count, found.success_count) == (wanted.inference_count, wanted.success_count)
    assert (found.fail_count, found.execution_count, found.last_inference_at) == (0, 0, WALL)
    assert [found.queue_s, found.run_s, found.success_s] == pytest.approx(
        [wanted.queue_s, wanted.run_s, wanted.success_s], abs=1e-6
    )
