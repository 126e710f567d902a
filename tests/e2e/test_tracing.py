"""A trace through a whole system: the caller's, the controller's and the worker's spans meet at a collector."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest
from running_system import PATIENCE_S, SIMPLE_TASK, running

sys.path.insert(0, str(Path(__file__).parents[1]))

from collector import Span, collecting

pytestmark = pytest.mark.long
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NAMES = {"infaas.request", "infaas.decide", "infaas.queue", "infaas.run"}
BODY = {
    "inputs": [
        {"name": name, "shape": [2, 16], "datatype": "INT32", "data": list(range(32))} for name in ("INPUT0", "INPUT1")
    ]
}


def test_one_query_is_one_trace_through_controller_and_worker(tmp_path: Path) -> None:
    with collecting(tmp_path) as collector:
        settings = {"INFAAS_OBSERVE__OTLP_ENDPOINT": collector.url, "INFAAS_OBSERVE__TRACE_RATIO": "0"}
        settings |= {"INFAAS_LOG__LEVEL": "debug"}
        with running(tmp_path / "state", settings) as system:
            system.register_simple()
            url = f"{system.endpoints.url}/v2/models/{SIMPLE_TASK}/infer"
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=7"}
            answer = httpx.post(url, json=BODY, headers=headers, timeout=PATIENCE_S)
            assert answer.status_code == 200, answer.text
            assert answer.headers["traceparent"] == headers["traceparent"]
            assert TRACE in system.infaas("explain", answer.headers["x-infaas-decision-id"])
            collector.wait(lambda spans: {span["name"] for span in spans} >= NAMES)
            log = (tmp_path / "state" / "logs" / "controller.log").read_text()
            assert any(headers["traceparent"] in line and "request_id=" in line for line in log.splitlines())
        spans: dict[str, Span] = {span["name"]: span for span in collector.spans() if span["trace"] == TRACE}
    assert set(spans) == NAMES
    request, run = spans["infaas.request"], spans["infaas.run"]
    assert request["parent"] == PARENT
    assert {spans[name]["parent"] for name in NAMES - {"infaas.request"}} == {request["id"]}
    assert (request["service"], run["service"]) == ("infaas-controller", "infaas-worker")
    assert run["attributes"]["infaas.variant"] == answer.headers["x-infaas-variant"]
    assert run["attributes"]["infaas.worker"] == answer.headers["x-infaas-worker"]
    assert run["state"] == "vendor=7"
    assert request["attributes"]["infaas.decision_id"] == answer.headers["x-infaas-decision-id"]
    assert request["began_ns"] <= spans["infaas.decide"]["began_ns"] <= spans["infaas.queue"]["began_ns"]
    assert all(span["began_ns"] <= span["ended_ns"] for span in spans.values())
