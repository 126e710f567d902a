"""What the edges count, read back through Prometheus' own parser."""

from __future__ import annotations

import platform

import httpx
import numpy as np
import pytest
from infaas_controller.api.auth import Authenticator
from prometheus_client.parser import text_string_to_metric_families
from serving import Serving

from infaas.domain.query import Code
from infaas.errors import RefusedError
from infaas.observe.live import Live, WorkerLive
from infaas.observe.metrics import Metrics, exposition_app
from infaas.tokens import Tokens

VARIANT = "simple.v1.ort-fp32-t1"


async def scrape(metrics: Metrics, headers: dict[str, str] | None = None, token: str | None = None) -> httpx.Response:
    app = exposition_app(metrics.registry, Authenticator(Tokens.of(token)).check)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        return await client.get("/metrics", headers=headers)


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


async def test_every_request_is_counted_once_whatever_became_of_it(edges: Serving) -> None:
    data = np.arange(16).tolist()
    body = {"inputs": [{"name": n, "shape": [1, 16], "datatype": "INT32", "data": data} for n in ("INPUT0", "INPUT1")]}
    async with httpx.AsyncClient(base_url=f"http://{edges.http}") as client:
        for _ in range(3):
            await client.post("/v2/models/simple/infer", json=body, headers={"x-infaas-priority": "critical"})
        await client.post("/v2/models/simple/infer", content=b"{")
        await client.post("/v2/models/some-random-name/infer", json=body)
        edges.service.refusal = RefusedError("full", code=Code.SATURATED, retry_after_s=1.0)
        await client.post("/v2/models/simple/infer", json=body)
    found = samples((await scrape(edges.metrics)).text)
    count = "infaas_requests_total"
    none = {"variant": "", "reason": "", "priority": "standard"}
    assert found[key(count, model="simple", variant=VARIANT, code="ok", reason="", priority="critical")] == 3
    assert found[key(count, model="simple", code="invalid-argument", **none)] == 1
    assert found[key(count, model="unknown", code="not-found", **none)] == 1
    assert found[key(count, model="simple", code="saturated", **{**none, "reason": "saturated"})] == 1
    assert found[key("infaas_dropped_total", reason="saturated")] == 1
    assert found[key("infaas_request_duration_seconds_count", model="simple", code="ok")] == 3
    assert found[key("infaas_inference_duration_seconds_count", variant=VARIANT)] == 3
    assert found[key("infaas_queue_duration_seconds_sum", model="simple")] == pytest.approx(0.0015)
    assert found[key("infaas_cost_usd_total", variant=VARIANT)] == pytest.approx(3 * 0.1 / 1000)
    assert found[key("infaas_slo_violations_total", kind="latency")] == 1
    assert not any("some-random-name" in str(name) for name in found)


async def test_gauges_are_counted_from_what_lives_at_the_scrape() -> None:
    live = Live()
    metrics = Metrics(lambda: live)
    before = samples((await scrape(metrics)).text)
    assert before[key("infaas_in_flight")] == 0
    assert key("infaas_store_up") not in before  # unknown is no sample, and not zero
    live = Live(
        in_flight=2,
        tasks=40,
        queue_size={"digits": 7},
        queue_bytes=4_096,
        queue_tenants={"digits": 3},
        replicas={"READY": 3, "LOADING": 1},
        workers={"w1": WorkerLive(True, 0.5, 0.9, 0.4, 0.01), "w2": WorkerLive(False)},
        is_store_up=False,
        view_age_s=1.5,
        is_leader=True,
    )
    found = samples((await scrape(metrics)).text)
    assert (found[key("infaas_in_flight")], found[key("infaas_tasks")]) == (2, 40)
    assert found[key("infaas_queue_size", task="digits")] == 7
    assert found[key("infaas_queue_bytes")] == 4_096
    assert found[key("infaas_queue_tenants", task="digits")] == 3
    assert found[key("infaas_replicas", state="READY")] == 3
    assert (found[key("infaas_worker_up", worker="w1")], found[key("infaas_worker_up", worker="w2")]) == (1, 0)
    assert found[key("infaas_worker_report_age_seconds", worker="w1")] == 0.5
    assert key("infaas_worker_report_age_seconds", worker="w2") not in found
    assert found[key("infaas_stall_ratio", worker="w1")] == 0.01
    assert (found[key("infaas_store_up")], found[key("infaas_leader")]) == (0, 1)
    live = Live()
    after = samples((await scrape(metrics)).text)
    assert key("infaas_worker_up", worker="w1") not in after


async def test_predictions_selections_batches_loads_and_scaling_are_observed() -> None:
    metrics = Metrics()
    metrics.observe_predictions(predicted_ms=[10.0, 0.0, 10.0, 10.0], observed_ms=[12.0, 12.0, 10.0, 3.0])
    metrics.observe_selections(0.00003, 1)
    metrics.observe_batch(VARIANT, 4)
    metrics.observe_load(VARIANT, 0.2)
    metrics.observe_scaling("replicate", "busy")
    found = samples((await scrape(metrics)).text)
    assert found[key("infaas_decision_duration_seconds_count")] == 1
    assert found[key("infaas_predicted_latency_error_ratio_bucket", direction="late", le="0.2")] == 1
    assert found[key("infaas_predicted_latency_error_ratio_bucket", direction="late", le="0.1")] == 0
    assert found[key("infaas_predicted_latency_error_ratio_count", direction="late")] == 1
    assert found[key("infaas_predicted_latency_error_ratio_count", direction="early")] == 2
    assert found[key("infaas_predicted_latency_error_ratio_sum", direction="early")] == 0.7
    assert found[key("infaas_batch_size_sum", variant=VARIANT)] == 4
    assert found[key("infaas_model_load_seconds_count", variant=VARIANT)] == 1
    assert found[key("infaas_autoscaler_decisions_total", action="replicate", reason="busy")] == 1
    assert found[key("infaas_build_info", version="0.1.0", python=platform.python_version())] == 1


async def test_the_exposition_serves_one_path_to_those_who_may() -> None:
    metrics = Metrics()
    assert (await scrape(metrics, token="s3cret")).status_code == 401
    good = await scrape(metrics, {"authorization": "Bearer s3cret"}, "s3cret")
    assert good.status_code == 200
    assert good.headers["content-type"].startswith("text/plain")
    open_metrics = await scrape(metrics, {"accept": "application/openmetrics-text; version=1.0.0"})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    app = exposition_app(metrics.registry)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        assert (await client.get("/")).status_code == 404
        refused = await client.post("/metrics")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
