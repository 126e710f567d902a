"""Clients that have never heard of INFaaS, unchanged and each in a process of its own, against a whole system.

NVIDIA's four Python clients have `test_tritonclients.py`; the fuzzer over our OpenAPI has `test_openapi_fuzzing.py`.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import client_suites
import httpx
import pytest
from client_suites import CLIENTS
from running_system import PATIENCE_S, SIMPLE_MODEL, SIMPLE_TASK, System, running

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
REQUIREMENTS = (
    "x-infaas-slo-latency-ms:20000",
    "x-infaas-slo-accuracy-min:0",
    "x-infaas-objective:latency",
    "x-infaas-priority:critical",
)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("e2e")) as made:
        made.register_simple()
        yield made


def in_our_environment(system: System, script: str, *options: str) -> client_suites.Done:
    return client_suites.run([sys.executable, CLIENTS / script, *options], system.environ)


# -- kserve ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handle", [SIMPLE_TASK, SIMPLE_MODEL])
@pytest.mark.parametrize("script", ["kserve_rest.py", "kserve_grpc.py"])
def test_kserves_client_works_unchanged(system: System, script: str, handle: str) -> None:
    python = client_suites.python_of("kserve")
    if isinstance(python, str):
        pytest.skip(python)
    url = system.endpoints.grpc if "grpc" in script else system.endpoints.url
    done = client_suites.run([python, CLIENTS / script, "--url", url, "--model", handle], system.environ)
    assert done.code == 0, done.said
    for check in ("health", "infer", "infer_with_requirements", "errors"):
        assert f"ok {check}\n" in done.said


# -- perf_analyzer ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perf_analyzer() -> Path:
    found = client_suites.perf_analyzer()
    if isinstance(found, str):
        pytest.skip(found)
    return found


FORMS = {
    "json": ("-i", "http", "--input-tensor-format", "json", "--output-tensor-format", "json"),
    "binary": ("-i", "http", "--input-tensor-format", "binary", "--output-tensor-format", "binary"),
    "grpc": ("-i", "grpc"),
    "grpc-stream": ("-i", "grpc", "--streaming", "-a"),
}


def measured(system: System, binary: Path, folder: Path, form: str, concurrency: int, *more: str) -> dict[str, str]:
    """The row of its report; asserts that it ended well and that the server did what it says."""
    endpoints = system.endpoints
    url = endpoints.grpc if form.startswith("grpc") else endpoints.url.removeprefix("http://")
    before = answered(system)
    report = folder / "report.csv"
    # Its stability criterion is of a quiet machine; here it says what it measured in one window and goes.
    window = ("--measurement-mode", "count_windows", "--measurement-request-count", "100", "-r", "3", "-s", "999")
    command = [binary, "-m", SIMPLE_TASK, "-u", url, *FORMS[form], "--concurrency-range", str(concurrency)]
    done = client_suites.run([*command, *window, "-f", report, *more], system.environ)
    assert done.code == 0, done.said
    assert not re.search(r"[1-9]\d* (request )?(failed|errors)", done.said, re.IGNORECASE), done.said
    with report.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["Concurrency"] == str(concurrency)
    assert float(row["Inferences/Second"]) > 0, done.said
    assert answered(system) - before >= 100, done.said
    return row


def answered(system: System) -> int:
    """Items of the task that were answered so far, as the server counts them."""
    document = httpx.get(f"{system.endpoints.url}/v2/models/{SIMPLE_TASK}/stats", timeout=PATIENCE_S).json()
    return sum(int(row["inference_count"]) for row in document["model_stats"])


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("form", list(FORMS))
def test_perf_analyzer_measures(
    system: System, perf_analyzer: Path, tmp_path: Path, form: str, concurrency: int
) -> None:
    row = measured(system, perf_analyzer, tmp_path, form, concurrency)
    assert float(row["p99 latency"]) >= float(row["p50 latency"]) > 0


@pytest.mark.parametrize("form", ["json", "binary", "grpc"])
def test_perf_analyzer_measures_with_requirements(
    system: System, perf_analyzer: Path, tmp_path: Path, form: str
) -> None:
    headers = [word for header in REQUIREMENTS for word in ("-H", header)]
    measured(system, perf_analyzer, tmp_path, form, 8, *headers)


def test_perf_analyzer_is_told_what_is_wrong_with_a_requirement(
    system: System, perf_analyzer: Path, tmp_path: Path
) -> None:
    url = system.endpoints.url.removeprefix("http://")
    command = [perf_analyzer, "-m", SIMPLE_TASK, "-u", url, "--concurrency-range", "1", "-p", "1000", "-r", "1"]
    done = client_suites.run([*command, "-H", "x-infaas-slo-latency-ms:soon"], system.environ)
    assert done.code != 0
    assert "x-infaas-slo-latency-ms" in done.said


# -- probes and scrapers ---------------------------------------------------------------------------------------------


def test_the_standard_health_client_is_answered(system: System) -> None:
    done = in_our_environment(system, "grpc_health_probe.py", "--url", system.endpoints.grpc)
    assert done.code == 0, done.said
    assert done.said.count("SERVING") == 2


def test_prometheus_parsers_find_every_family_typed_in_base_units_and_bounded(system: System) -> None:
    in_our_environment(system, "triton_http.py", "--url", system.endpoints.url.removeprefix("http://"))
    done = in_our_environment(system, "prometheus_scrape.py", "--url", system.endpoints.metrics_url)
    assert done.code == 0, done.said
    for family in ("infaas_requests counter", "infaas_request_duration_seconds histogram", "infaas_in_flight gauge"):
        assert f"family {family}" in done.said


def test_a_health_watcher_hears_of_the_drain_before_the_listener_closes(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running(tmp_path_factory.mktemp("e2e")) as system:
        command = [sys.executable, CLIENTS / "grpc_health_probe.py", "--url", system.endpoints.grpc, "--watch"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as watcher:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "SERVING\n"
            system.infaas("down")
            said = watcher.communicate(timeout=PATIENCE_S)[0]
        assert said == "NOT_SERVING\n"
        assert watcher.returncode == 0
        system.up()
