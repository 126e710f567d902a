"""What requirements mean, through the whole system, with eight real classifiers: floors, caps, objectives, handles,
versions, defaults, fallbacks, explanations, refusals and the numbers that a scrape shows."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_system import SIMPLE_TASK, TASK, Scans, System, ask_until_answered, wait_for

from infaas.client import Client, Inference, QueryError, Requirements
from infaas.control import VariantDocument
from infaas.demo import family
from infaas.domain.query import Code

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
LOOSE_MS = 20_000.0
BEST_MARGIN = 0.02


@pytest.fixture(scope="module")
def client(family_system: System) -> Iterator[Client]:
    with family_system.client() as made:
        yield made


@pytest.fixture(scope="module")
def variants(client: Client) -> dict[str, VariantDocument]:
    """Those that serve the task; every one measured."""
    found = {v.name: v for v in client.variants(task=TASK) if v.is_current and v.state == "READY"}
    assert len({v.model for v in found.values()}) == len(family.FAMILY)
    assert all(v.accuracy is not None and v.cost_usd_per_1k is not None for v in found.values())
    return found


def accuracy(variant: VariantDocument) -> float:
    assert variant.accuracy is not None
    return variant.accuracy.value


def cost(variant: VariantDocument) -> float:
    assert variant.cost_usd_per_1k is not None
    return variant.cost_usd_per_1k


def refused(client: Client, handle: str, scans: Scans, requirements: Requirements) -> QueryError:
    with pytest.raises(QueryError) as caught:
        client.infer(handle, scans.rows(0), requirements)
    return caught.value


def raw(scans: Scans, count: int = 1) -> dict[str, object]:
    """A query as JSON."""
    rows = scans.rows(0, count)[family.INPUT]
    return {"inputs": [{"name": family.INPUT, "datatype": "FP32", "shape": list(rows.shape), "data": rows.tolist()}]}


def test_no_answer_of_hundreds_comes_from_below_the_floor_or_above_the_cap(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    scores = sorted({accuracy(v) for v in variants.values()})
    costs = sorted({cost(v) for v in variants.values()})

    def random_requirements(rng: random.Random) -> Requirements:
        floor = rng.choice([None, 0.0, rng.choice(scores), rng.choice(scores), rng.uniform(scores[0], 1.0)])
        return Requirements(
            slo_latency_ms=rng.choice([None, LOOSE_MS, 200.0, 20.0, 3.0]),
            slo_accuracy_min=floor,
            max_cost=rng.choice([None, None, rng.choice(costs), rng.uniform(costs[0], costs[-1])]),
            objective=rng.choice([None, "cost", "accuracy", "latency"]),
            priority=rng.choice([None, "critical", "sheddable"]),
            fallback=rng.choice([None, None, True]),
        )

    def ask(seed: int) -> list[tuple[Requirements, Inference | QueryError]]:
        rng = random.Random(seed)
        outcomes: list[tuple[Requirements, Inference | QueryError]] = []
        for number in range(300):
            asked = random_requirements(rng)
            try:
                outcomes.append((asked, client.infer(TASK, scans.rows(number), asked)))
            except QueryError as error:
                outcomes.append((asked, error))
        return outcomes

    with ThreadPoolExecutor(2) as pool:
        outcomes = [one for part in pool.map(ask, (1, 2)) for one in part]
    best = max(scores)
    met: Counter[str] = Counter()
    for asked, outcome in outcomes:
        if isinstance(outcome, QueryError):
            met[outcome.code.value] += 1
            continue
        served = variants[outcome.served.variant or ""]
        met["fallback" if outcome.served.fallback else "answered"] += 1
        if asked.max_cost is not None:
            assert cost(served) <= asked.max_cost, (asked, outcome.served)
        if outcome.served.fallback:
            assert asked.fallback
            continue
        floor = best - BEST_MARGIN if asked.slo_accuracy_min is None else asked.slo_accuracy_min
        # Requirements travel as decimal text of twelve digits.
        assert accuracy(served) >= floor - 1e-9, (asked, outcome.served)
    allowed = {"answered", "fallback", "slo-unsatisfiable", "deadline-unreachable", "deadline-passed", "loading"}
    assert set(met) <= allowed, met
    assert met["answered"] >= 250, met
    assert met["slo-unsatisfiable"] > 0, met
    assert met["fallback"] > 0, met


def test_the_cap_is_kept_and_the_cheapest_that_is_good_enough_serves(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    for floor in (0.0, *sorted({accuracy(v) for v in variants.values()})):
        asked = Requirements(slo_latency_ms=LOOSE_MS, slo_accuracy_min=floor)
        served = variants[client.infer(TASK, scans.rows(0), asked).served.variant or ""]
        assert cost(served) == min(cost(v) for v in variants.values() if accuracy(v) >= floor)


def test_the_objective_accuracy_is_served_by_the_most_accurate_within_the_cap(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    for cap in (None, *sorted({cost(v) for v in variants.values()})):
        asked = Requirements(slo_latency_ms=LOOSE_MS, slo_accuracy_min=0.0, max_cost=cap, objective="accuracy")
        served = variants[client.infer(TASK, scans.rows(0), asked).served.variant or ""]
        assert accuracy(served) == max(accuracy(v) for v in variants.values() if cap is None or cost(v) <= cap)


def test_the_objective_latency_is_served_by_what_is_predicted_to_answer_first(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    asked = Requirements(slo_accuracy_min=0.9, objective="latency")
    answer = client.infer(TASK, scans.rows(0), asked)
    decision = client.decision(answer.served.decision_id or "")
    compared = {one.variant: one.predicted_s for one in decision.candidates if one.predicted_s is not None}
    assert set(compared) <= {name for name, v in variants.items() if accuracy(v) >= 0.9}
    assert decision.variant == answer.served.variant
    soonest = min(compared.values())
    assert compared[decision.variant or ""] == soonest
    for one in decision.candidates:
        # What was not looked at could not have been sooner even at rest.
        is_good = accuracy(variants[one.variant]) >= 0.9
        assert one.variant in compared or not is_good or (variants[one.variant].p95_ms or 0.0) > 1000 * soonest


def test_what_can_never_be_met_is_a_422_that_names_the_bound_and_the_nearest_variant(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    best = max(accuracy(v) for v in variants.values())
    best_ones = {name for name, v in variants.items() if accuracy(v) == best}
    cheapest = min(variants.values(), key=cost).name
    cases = (
        ("latency", Requirements(slo_latency_ms=0.001, slo_accuracy_min=best), best_ones),
        ("accuracy", Requirements(slo_accuracy_min=1.0), best_ones),
        ("cost", Requirements(slo_accuracy_min=0.0, max_cost=0.0), {cheapest}),
    )
    for bound, asked, nearest in cases:
        error = refused(client, TASK, scans, asked)
        assert error.code is Code.SLO_UNSATISFIABLE
        assert not error.is_retryable
        assert bound in error.text
        assert any(name in error.text for name in nearest), error.text
        decision = client.decision(error.served.decision_id or "")
        assert decision.outcome == "slo-unsatisfiable"
        assert decision.reason == error.text


def test_a_fallback_is_labelled_and_is_the_best_there_is(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    answer = client.infer(TASK, scans.rows(0), Requirements(slo_accuracy_min=1.0, fallback=True))
    assert answer.served.fallback
    assert accuracy(variants[answer.served.variant or ""]) == max(accuracy(v) for v in variants.values())
    decision = client.decision(answer.served.decision_id or "")
    assert decision.fallback == answer.served.fallback


def test_a_handle_may_be_a_task_a_model_or_a_variant(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    for one in variants.values():
        answer = client.infer(one.name, scans.rows(0), Requirements(slo_accuracy_min=0.0))
        assert answer.served.variant == one.name
        assert (answer.model, answer.version) == (one.name, "1")
    for model in {v.model for v in variants.values()}:
        answer = client.infer(model, scans.rows(0))
        assert variants[answer.served.variant or ""].model == model
        assert (answer.model, answer.version) == (model, "1")
    assert client.infer(TASK, scans.rows(0)).model == TASK


def test_a_version_must_be_one_that_there_is(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    variant = next(iter(variants))
    for handle in (TASK, variants[variant].model, variant):
        assert client.infer(handle, scans.rows(0), version="1").version == "1"
        with pytest.raises(QueryError) as caught:
            client.infer(handle, scans.rows(0), version="9")
        assert caught.value.code is Code.NOT_FOUND
        assert "9" in caught.value.text


def test_who_states_no_floor_gets_the_best_minus_two_points(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    answer = client.infer(TASK, scans.rows(0))
    floor = client.decision(answer.served.decision_id or "").floor
    assert floor == pytest.approx(max(accuracy(v) for v in variants.values()) - BEST_MARGIN)
    assert accuracy(variants[answer.served.variant or ""]) >= floor


def test_answers_and_errors_carry_their_headers(family_system: System, scans: Scans) -> None:
    url = f"{family_system.endpoints.url}/v2/models/{TASK}/infer"
    headers = {"x-request-id": "mine-7", "x-infaas-slo-latency-ms": "20000", "traceparent": _TRACEPARENT}
    with httpx.Client(trust_env=False) as http:
        answer = http.post(url, json=raw(scans), headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-request-id"] == "mine-7"
        assert answer.headers["x-infaas-slo-met"] == "true"
        assert answer.headers["x-infaas-attempts"] == "1"
        assert float(answer.headers["x-infaas-queue-ms"]) >= 0
        assert answer.headers["x-infaas-worker"] == "local-1"
        assert answer.headers["x-infaas-variant"] == answer.json()["parameters"]["variant"]
        assert "total;dur=" in answer.headers["server-timing"]
        assert "x-infaas-dropped-reason" not in answer.headers

        error = http.post(url, json=raw(scans), headers={**headers, "x-infaas-slo-accuracy-min": "1"})
        assert error.status_code == 422
        assert error.headers["x-request-id"] == "mine-7"
        assert error.headers["x-infaas-decision-id"] == error.json()["decision_id"]
        assert error.json() | {"error": "", "decision_id": ""} == {
            "error": "", "code": "slo-unsatisfiable", "request_id": "mine-7", "decision_id": "", "retryable": False,
        }  # fmt: skip
        assert "retry-after" not in error.headers


_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_the_explanation_comes_with_the_answer_when_asked(
    family_system: System, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    url = f"{family_system.endpoints.url}/v2/models/{TASK}/infer"
    with httpx.Client(trust_env=False) as http:
        answer = http.post(url, json=raw(scans), headers={"x-infaas-explain": "true"})
        plain = http.post(url, json=raw(scans))
    decision = answer.json()["parameters"]["decision"]
    decision = json.loads(decision) if isinstance(decision, str) else decision
    assert {one["variant"] for one in decision["candidates"]} == set(variants)
    assert decision["variant"] == answer.headers["x-infaas-variant"]
    assert "decision" not in plain.json()["parameters"]


def test_a_decision_is_found_by_its_id_and_by_the_request_s(
    family_system: System, client: Client, scans: Scans
) -> None:
    answer = client.infer(TASK, scans.rows(0), Requirements(slo_accuracy_min=0.0), request_id="find-me-again")
    by_id = family_system.json("explain", answer.served.decision_id or "")
    by_request = family_system.json("explain", "find-me-again")
    assert by_id == by_request
    assert by_id["request_id"] == "find-me-again"
    assert by_id["variant"] == answer.served.variant
    chosen = [one for one in by_id["candidates"] if one["reason"].startswith("chosen")]
    assert [one["variant"] for one in chosen] == [answer.served.variant]
    assert "no decision 'never-was'" in family_system.infaas("explain", "never-was", expect=1)


def test_defaults_of_the_task_hold_for_those_who_state_nothing(
    family_system: System, client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    cheapest = min(variants.values(), key=cost)
    system = family_system
    said = system.infaas("task", "set", TASK, "--slo-accuracy", "0", "--slo-latency", "15000", "--fallback", "allow")
    assert f"of task {TASK}" in said

    def requirements() -> dict[str, object]:
        answer = client.infer(TASK, scans.rows(0))
        return dict(client.decision(answer.served.decision_id or "").requirements)

    try:
        wait_for(lambda: requirements().get("slo_latency_ms") == 15000.0, "the default to apply")
        answer = client.infer(TASK, scans.rows(0))
        assert answer.served.variant == cheapest.name
        assert answer.served.slo_met is True
        stated = client.infer(TASK, scans.rows(0), Requirements(slo_accuracy_min=0.95))
        assert accuracy(variants[stated.served.variant or ""]) >= 0.95
    finally:
        system.infaas("task", "set", TASK, "--slo-accuracy", "none", "--slo-latency", "none", "--fallback", "none")
    wait_for(lambda: "slo_latency_ms" not in _stated(requirements()), "the defaults to be gone")


def _stated(requirements: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in requirements.items() if value is not None}


def test_a_batch_of_16_is_answered_row_by_row(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    best = max(accuracy(v) for v in variants.values() if v.max_batch_size >= 16)
    asked = Requirements(slo_accuracy_min=best)
    whole = client.infer(TASK, scans.rows(0, 16), asked).outputs[family.OUTPUT]
    assert whole.shape == (16, family.CLASSES)
    rows = [client.infer(TASK, scans.rows(at), asked).outputs[family.OUTPUT][0] for at in range(16)]
    np.testing.assert_array_equal(whole.argmax(axis=1), np.array(rows).argmax(axis=1))
    assert (whole.argmax(axis=1) == scans.labels[:16]).mean() >= 0.8

    with pytest.raises(QueryError) as caught:
        client.infer(TASK, scans.rows(0, 33), asked)
    assert caught.value.code is Code.INVALID
    assert "32" in caught.value.text


def test_what_is_wrong_with_a_request_is_said_with_the_right_status(family_system: System, scans: Scans) -> None:
    base = f"{family_system.endpoints.url}/v2/models"
    good = raw(scans)
    with httpx.Client(trust_env=False) as http:

        def ask(handle: str = TASK, headers: dict[str, str] | None = None, **options: object) -> tuple[int, str, str]:
            answer = http.post(f"{base}/{handle}/infer", headers=headers, **(options or {"json": good}))  # type: ignore[arg-type]
            body = answer.json()
            assert set(body) - {"problems"} == {"error", "code", "request_id", "decision_id", "retryable"}
            assert body["request_id"] == answer.headers["x-request-id"]
            assert body["retryable"] is False
            return answer.status_code, body["code"], body["error"]

        status, code, text = ask("no-such-thing")
        assert (status, code) == (404, "not-found")
        assert "no-such-thing" in text
        for header, value in (
            ("x-infaas-slo-latency-ms", "soon"),
            ("x-infaas-slo-accuracy-min", "1.2"),
            ("x-infaas-max-cost", "-1"),
            ("x-infaas-objective", "speed"),
            ("x-infaas-fallback", "maybe"),
            ("x-infaas-latency", "5"),
        ):
            status, code, text = ask(headers={header: value})
            assert (status, code) == (400, "invalid-argument"), header
            assert header in text
        status, _, text = ask(
            json={"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 63], "data": [0] * 63}]}
        )
        assert status == 400
        assert "63" in text
        assert ask(json={"inputs": []})[0] == 400
        assert ask(content=b"{")[:2] == (400, "invalid-argument")
        status, code, text = ask(content=b" " * (2**20 + 1))
        assert (status, code) == (413, "too-large")
        assert str(2**20) in text


def test_more_than_a_variant_can_do_in_time_is_shed_with_a_time_to_come_back(
    client: Client, variants: dict[str, VariantDocument], scans: Scans
) -> None:
    """Far more queries at once than the slowest variant can answer within their objective."""
    slowest = max(variants.values(), key=lambda v: v.p95_ms or 0.0)
    assert slowest.p95_ms is not None
    ask_until_answered(client, slowest.name, scans, Requirements(slo_accuracy_min=0.0))
    asked = Requirements(slo_accuracy_min=0.0, slo_latency_ms=max(60.0, 5 * slowest.p95_ms))

    def ask(number: int) -> QueryError | None:
        try:
            client.infer(slowest.name, scans.rows(number), asked)
        except QueryError as error:
            return error
        return None

    with ThreadPoolExecutor(48) as pool:
        errors = [error for error in pool.map(ask, range(192)) if error is not None]
    codes = Counter(error.code for error in errors)
    assert set(codes) <= {Code.DEADLINE_UNREACHABLE, Code.DEADLINE_PASSED, Code.SATURATED}, codes
    assert codes[Code.DEADLINE_UNREACHABLE] > 0, codes
    for error in errors:
        if error.code is Code.DEADLINE_UNREACHABLE:
            assert error.is_retryable
            assert error.retry_after_s is not None
            assert error.retry_after_s >= 1
            assert error.served.dropped_reason == "deadline-unreachable"
            assert error.served.decision_id


def test_without_a_worker_that_serves_a_query_is_a_503_until_it_is_back(
    family_system: System, client: Client, scans: Scans
) -> None:
    family_system.infaas("worker", "drain", "local-1")
    try:
        wait_for(lambda: client.worker("local-1").state == "DRAINING", "the worker to drain")
        error = refused(client, TASK, scans, Requirements(slo_accuracy_min=0.0))
        assert error.code is Code.NO_WORKER
        assert error.is_retryable
        assert error.retry_after_s is not None
        assert error.served.dropped_reason == "no-worker"
    finally:
        family_system.infaas("worker", "resume", "local-1")
    wait_for(lambda: client.worker("local-1").state == "READY", "the worker to be back")
    ask_until_answered(client, TASK, scans, Requirements(slo_accuracy_min=0.0))


def test_a_scrape_counts_every_query_once_and_its_gauges_go_back_to_nothing(
    family_system: System, client: Client, scans: Scans
) -> None:
    def scrape() -> dict[tuple[str, ...], float]:
        answer = httpx.get(family_system.endpoints.metrics_url, trust_env=False)
        assert answer.status_code == 200
        return {
            (sample.name, *sorted(f"{key}={value}" for key, value in sample.labels.items())): sample.value
            for metric in text_string_to_metric_families(answer.text)
            for sample in metric.samples
        }

    def total(samples: dict[tuple[str, ...], float], *words: str) -> float:
        return sum(value for key, value in samples.items() if set(words) <= set(key))

    before = scrape()
    for number in range(20):
        client.infer(TASK, scans.rows(number), Requirements(slo_accuracy_min=0.0))
    for _ in range(3):
        refused(client, TASK, scans, Requirements(slo_accuracy_min=1.0))
    after = scrape()
    asked = ("infaas_requests_total", f"model={TASK}")
    assert total(after, *asked, "code=ok") - total(before, *asked, "code=ok") == 20
    refusals = (*asked, "code=slo-unsatisfiable")
    assert total(after, *refusals) - total(before, *refusals) == 3
    assert total(after, "infaas_cost_usd_total") > total(before, "infaas_cost_usd_total")
    for gauge in ("infaas_in_flight", "infaas_queue_size", "infaas_queue_bytes", "infaas_queue_tenants"):
        assert any(key[0] == gauge for key in after)
        wait_for(lambda gauge=gauge: total(scrape(), gauge) == 0, f"{gauge} to be 0")
    up = {"infaas_worker_up": 1, "infaas_store_up": 1, "infaas_leader": 1}
    assert {name: total(scrape(), name) for name in up} == up


def test_the_model_of_the_outside_world_adds_up(client: Client) -> None:
    with np.load(family.path(family.SIMPLE_EVAL_FILE), allow_pickle=False) as data:
        arrays = {name: data[name] for name in ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")}
    for at in range(0, 32, 8):
        rows = {name: arrays[name][at : at + 8] for name in ("INPUT0", "INPUT1")}
        for is_binary in (True, False):
            outputs = client.infer(SIMPLE_TASK, rows, is_binary=is_binary).outputs
            for name in ("OUTPUT0", "OUTPUT1"):
                np.testing.assert_array_equal(outputs[name], arrays[name][at : at + 8])
