"""`infaas bench` against a whole system, and what is found in the logs of all its programs afterwards: the decisions
that matter, and neither a secret nor anything of the inputs."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from running_system import INFAAS, PATIENCE_S, System, running, wait_for

from infaas.demo import family

pytestmark = pytest.mark.long
TOKEN = "tok-9f1c6e0b7a"
HEADER_SECRETS = {
    "cookie": "session=c00kie-5ecret",
    "x-api-key": "key-5ecret-77",
    "proxy-authorization": "Basic cHJ4eQ==",
}
MARK = 1234567.0
"""A value that no line has by chance."""
TRACE = "0af7651916cd43dd8448eb211c80319c"
EVAL = family.path(family.SIMPLE_EVAL_FILE)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = {
        "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.05",
        "INFAAS_GENERATOR__MAX_BATCH_SIZE": "4",
        "INFAAS_AUTH__TOKEN": TOKEN,
        "INFAAS_LOG__FORMAT": "json",
        "INFAAS_LOG__LEVEL": "debug",
        "INFAAS_LOG__QUERIES": "all",
    }
    with running(tmp_path_factory.mktemp("e2e"), settings) as system:
        system.register_simple()
        yield system


def of_sets(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in report["sets"]}


@pytest.mark.parametrize("protocol", ["rest", "rest-binary", "grpc"])
def test_a_schedule_is_sent_and_every_query_is_told_of(system: System, tmp_path: Path, protocol: str) -> None:
    out = tmp_path / "report.json"
    words = ("bench", "simple", EVAL, "--rate", "100", "-n", "60", "--protocol", protocol, "--batch", "2")
    sets = ("--set", "latency=20000,name=late:weight=2", "--set", "accuracy=0,objective=latency,name=quick")
    report = system.json(*words, *sets, "--out", out)
    assert json.loads(out.read_text()) == report
    found = of_sets(report)
    assert sum(one["sent"] for one in found.values()) == 60
    for one in (*found.values(), report["total"]):
        assert one["codes"] == {"ok": one["sent"]}
        assert sum(one["variants"].values()) == one["answered"] == one["sent"]
        assert one["accuracy"]["value"] == 1.0
        assert 0 < one["accuracy"]["rows"] <= min(64, 2 * one["answered"]), "of a file of 64 rows, each scored once"
    assert report["total"]["accuracy"]["rows"] == 64
    assert 0 < report["answering_s"] <= report["seconds"]
    assert found["late"]["on_time"] == found["late"]["sent"] > found["quick"]["sent"] > 0
    assert found["quick"]["on_time"] is None
    assert found["late"]["latency_ms"][0]["value"] > 0
    assert report["total"]["latency_ms"][3] == {"share": 0.99, "value": None, "low": None, "high": None}
    assert report["parameters"]["protocol"] == protocol
    assert report["versions"]["server"]


def test_callers_that_wait_a_trace_and_made_up_inputs(system: System, tmp_path: Path) -> None:
    closed = system.json("bench", "simple", "--random", "--concurrency", "4", "-n", "50")
    assert of_sets(closed).popitem()[1]["codes"] == {"ok": 50}
    assert closed["offered"] is None
    trace = tmp_path / "trace.csv"
    trace.write_text("minute,a,b\n0,20,10\n1,10,0\n")
    played = system.json("bench", "simple", "--random", "--trace", trace, "--speed", "120")
    assert of_sets(played).popitem()[1]["codes"] == {"ok": 40}


def test_refusals_are_outcomes_and_a_run_without_answers_fails(system: System) -> None:
    words = ("bench", "simple", "--random", "--concurrency", "1", "-n", "5", "--set", "max-cost=0,name=free")
    said = system.infaas(*words, expect=1)
    assert "slo-unsatisfiable 100.0%" in said
    for misuse in ((), ("--random",), ("--random", "--rate", "0"), ("--random", "--rate", "5", "--concurrency", "1")):
        assert "usage:" in system.infaas("bench", "simple", *misuse, expect=2)
    assert "latncy" in system.infaas("bench", "simple", "--random", "--rate", "5", "--set", "latncy=5", expect=1)


def test_an_interrupt_prints_what_there_is(system: System) -> None:
    words = [INFAAS, "bench", "simple", "--random", "--rate", "50", "--duration", "3600", "-o", "json"]
    before = len(logged(system, "query answered"))
    running = subprocess.Popen(words, env=system.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(logged(system, "query answered")) > before + 10, "queries of the bench")
        running.send_signal(signal.SIGINT)
        printed, said = running.communicate(timeout=PATIENCE_S)
    finally:
        running.kill()
    assert running.returncode == 0, said
    report = json.loads(printed)
    assert report["sets"][0]["answered"] > 10
    assert any("before its time" in one["what"] for one in report["findings"])


def test_an_interrupt_while_warming_up_is_one_line_and_exit_status_130(system: System) -> None:
    words = [INFAAS, "bench", "simple", "--random", "--concurrency", "2", "--warm-up", "3600", "-o", "json"]
    before = len(logged(system, "query answered"))
    running = subprocess.Popen(words, env=system.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(logged(system, "query answered")) > before + 10, "queries of the warm-up")
        running.send_signal(signal.SIGINT)
        printed, said = running.communicate(timeout=PATIENCE_S)
    finally:
        running.kill()
    assert (running.returncode, printed) == (130, "")
    assert said.splitlines() == ["Interrupted: there is no report."]


def log_texts(system: System) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((system.folder / "logs").iterdir())}


def logged(system: System, event: str) -> list[dict[str, Any]]:
    text = (system.folder / "logs" / "controller.log").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in lines if line["event"] == event]


def test_logs_name_decisions_and_hold_neither_secrets_nor_inputs(system: System) -> None:
    row = np.full((1, 16), MARK).astype(np.int32).tolist()
    inputs = [{"name": name, "datatype": "INT32", "shape": [1, 16], "data": row} for name in ("INPUT0", "INPUT1")]
    url = f"{system.endpoints.url}/v2/models/simple/infer"
    headers = {**HEADER_SECRETS, "authorization": f"Bearer {TOKEN}", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}

    def ask(name: str, body: object, **more: str) -> int:
        stated = {**headers, "x-request-id": name, **more}
        return httpx.post(url, json=body, headers=stated, timeout=PATIENCE_S).status_code

    bad = [{**inputs[0], "datatype": "FP32", "shape": [2, 16]}, inputs[1]]
    assert ask("fine-1", {"inputs": inputs}) == 200
    assert ask("costly-1", {"inputs": inputs}, **{"x-infaas-max-cost": "0"}) == 422
    assert ask("bad-1", {"inputs": bad}) == 400
    assert ask("wrong-1", {"inputs": inputs}, authorization="Bearer wr0ng-token-31") == 401

    def line(event: str, name: str) -> dict[str, Any]:
        found = wait_for(lambda: [one for one in logged(system, event) if one.get("request_id") == name], event)
        return found[0]

    answered, refused = line("query answered", "fine-1"), line("query refused", "costly-1")
    assert answered["decision_id"]
    assert answered["variant"]
    assert answered["trace_id"] == TRACE
    assert refused["code"] == "slo-unsatisfiable"
    assert refused["reason"]
    traced = line("traced request ended", "bad-1")
    assert traced["code"] == "invalid-argument"
    assert traced["traceparent"].split("-")[1] == TRACE
    for name, text in log_texts(system).items():
        secrets = [TOKEN, "wr0ng-token-31", "c00kie-5ecret", "key-5ecret-77", "cHJ4eQ==", str(int(MARK))]
        assert [secret for secret in secrets if secret in text] == [], name
    worker = "".join(text for name, text in log_texts(system).items() if name.startswith("worker"))
    assert '"event": "loaded"' in worker
