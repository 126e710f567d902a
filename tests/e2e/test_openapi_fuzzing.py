"""schemathesis, unchanged and in an environment of its own, holds a whole system to its OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import client_suites
import httpx
import pytest
from running_system import PATIENCE_S, SIMPLE_TASK, System, running, wait_for

from infaas.domain.query import Code
from infaas.observe.metrics import OK
from infaas.rpc.edges import EDGES

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
TOKEN = "a-token-of-the-tests"
READINESS = """
[[operations]]
include-path-regex = "/ready$"

[operations.checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503]
"""
"""Whether a model is ready is told by the status (SURFACE §1): one that is not loaded is a 503, and no fault."""
HURRIED = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "4xx", 504]\n'
"""Who asks for an answer within a millisecond may be told that it is over; the metrics say that a 504 meant this."""
EXAMPLE = {
    "inputs": [
        {"name": name, "shape": [1, 16], "datatype": "INT32", "data": list(range(16))} for name in ("INPUT0", "INPUT1")
    ]
}


@pytest.fixture(scope="module")
def schemathesis() -> Path:
    python = client_suites.python_of("schemathesis")
    if isinstance(python, str):
        pytest.skip(python)
    return python.with_name("schemathesis")


@pytest.fixture
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("e2e")) as made:
        made.register_simple()
        yield made


def fuzz(system: System, binary: Path, folder: Path, config: str, *options: str) -> None:
    """Asserts that it tested something and found nothing."""
    file = folder / "schemathesis.toml"
    file.write_text(config)
    fixed = ("--seed", "7", "--generation-database", "none", "--no-color", "--warnings", "off")
    patient = ("--request-timeout", "40", "--suppress-health-check", "all", "--continue-on-failure")
    run = ("run", f"{system.endpoints.url}/openapi.json", "--checks", ",".join(CHECKS))
    command = [binary, "--config-file", file, *run, *fixed, *patient, *options]
    done = client_suites.run(command, system.environ, timeout_s=900.0, folder=folder)
    assert done.code == 0, done.said
    tested = re.search(r"Tested: (\d+)", done.said)
    assert tested is not None, done.said
    assert int(tested[1]) > 0, done.said


def in_flight(system: System) -> float:
    found = re.search(r"^infaas_in_flight (\S+)$", httpx.get(system.endpoints.metrics_url).text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def server_errors(system: System) -> set[str]:
    """The codes of all queries so far that were answered with a 5xx."""
    counted = re.findall(
        r'^infaas_requests_total\{[^}]*code="([^"]+)"', httpx.get(system.endpoints.metrics_url).text, re.M
    )
    assert counted
    return {code for code in counted if code != OK and EDGES[Code(code)].http >= 500}


def test_reading_and_inferring_meet_no_server_error_but_not_ready_and_too_late(
    system: System, schemathesis: Path, tmp_path: Path
) -> None:
    phases = ("--phases", "examples,coverage,fuzzing", "--max-examples", "40")
    fuzz(system, schemathesis, tmp_path, READINESS, *phases, "--include-method", "GET")
    fuzz(system, schemathesis, tmp_path, HURRIED, *phases, "--include-path-regex", "/infer$")
    assert server_errors(system) <= {Code.DEADLINE_PASSED.value}
    wait_for(lambda: in_flight(system) == 0, "every query to end")
    answer = httpx.post(f"{system.endpoints.url}/v2/models/{SIMPLE_TASK}/infer", json=EXAMPLE, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text


def test_whatever_is_sent_to_any_operation_is_answered_as_documented(
    system: System, schemathesis: Path, tmp_path: Path
) -> None:
    """It unloads, unregisters and drains what it finds, so "not now" (503) and "not served" (501) are right answers;
    and it asks for some within less than a millisecond (504)."""
    config = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", 501, 503, 504]\n'
    fuzz(system, schemathesis, tmp_path, config, "--phases", "examples,coverage,fuzzing", "--max-examples", "15")
    wait_for(lambda: in_flight(system) == 0, "every query to end")
    assert httpx.get(f"{system.endpoints.url}/v2/health/live", timeout=PATIENCE_S).status_code == 200


def test_no_documented_operation_but_health_is_served_without_the_token(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running(tmp_path_factory.mktemp("e2e"), {"INFAAS_AUTH__TOKEN": TOKEN}) as system:
        document = httpx.get(
            f"{system.endpoints.url}/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE_S
        ).json()
        for path, item in document["paths"].items():
            for method in set(item) & {"get", "post", "put", "patch", "delete"}:
                url = system.endpoints.url + re.sub(r"\{[^}]*\}", "1", path)
                answer = httpx.request(method, url, timeout=PATIENCE_S)
                is_health = bool(re.search(r"/health/|livez|readyz|healthz", path))
                assert (answer.status_code == 401) is not is_health, (method, path, answer.status_code)
