"""The one table of errors."""

from __future__ import annotations

import json
import logging

import grpc
import pytest

from infaas.domain.query import Code
from infaas.errors import InfaasError, InvalidError, RefusedError, UnavailableError
from infaas.rpc.edges import EDGES, HIDDEN_TEXT, as_error, error_body, retry_after_header


def test_every_code_has_an_edge_and_every_edge_a_real_grpc_status() -> None:
    assert set(EDGES) == set(Code)
    for edge in EDGES.values():
        assert edge.grpc in grpc.StatusCode.__members__


@pytest.mark.parametrize(
    ("code", "http", "status", "dropped"),
    [
        (Code.INVALID, 400, "INVALID_ARGUMENT", None),
        (Code.UNAUTHENTICATED, 401, "UNAUTHENTICATED", None),
        (Code.FORBIDDEN, 403, "PERMISSION_DENIED", None),
        (Code.NOT_FOUND, 404, "NOT_FOUND", None),
        (Code.CONFLICT, 409, "ABORTED", None),
        (Code.PRECONDITION, 412, "ABORTED", None),
        (Code.TOO_LARGE, 413, "RESOURCE_EXHAUSTED", None),
        (Code.SLO_UNSATISFIABLE, 422, "FAILED_PRECONDITION", None),
        (Code.SATURATED, 429, "RESOURCE_EXHAUSTED", "saturated"),
        (Code.DEADLINE_UNREACHABLE, 429, "RESOURCE_EXHAUSTED", "deadline-unreachable"),
        (Code.QUOTA, 429, "RESOURCE_EXHAUSTED", "quota"),
        (Code.EVICTED, 429, "RESOURCE_EXHAUSTED", "evicted-priority"),
        (Code.NO_WORKER, 503, "UNAVAILABLE", "no-worker"),
        (Code.LOADING, 503, "UNAVAILABLE", "no-worker"),
        (Code.DRAINING, 503, "UNAVAILABLE", "no-worker"),
        (Code.DEADLINE_PASSED, 504, "DEADLINE_EXCEEDED", "deadline-passed"),
        (Code.MODEL_FAILED, 500, "INTERNAL", None),
        (Code.UNSUPPORTED, 501, "UNIMPLEMENTED", None),
    ],
)
def test_the_table_is_the_published_one(code: Code, http: int, status: str, dropped: str | None) -> None:
    edge = EDGES[code]
    assert (edge.http, edge.grpc, edge.dropped) == (http, status, dropped)


def test_a_body_says_what_code_and_whether_a_retry_helps() -> None:
    error = RefusedError("queue full", code=Code.SATURATED, retry_after_s=0.2)
    assert json.loads(error_body(error, "r-1", "d-1")) == {
        "error": "queue full",
        "code": "saturated",
        "request_id": "r-1",
        "decision_id": "d-1",
        "retryable": True,
    }


def test_problems_are_listed_when_there_are_several() -> None:
    error = InvalidError("a; b", problems=("a", "b"))
    assert json.loads(error_body(error, None))["problems"] == ["a", "b"]
    assert "problems" not in json.loads(error_body(InvalidError("a", problems=("a",)), None))


def test_retry_after_counts_whole_seconds_and_is_there_for_429_and_503_only() -> None:
    assert retry_after_header(RefusedError("", code=Code.SATURATED, retry_after_s=0.01)) == "1"
    assert retry_after_header(RefusedError("", code=Code.LOADING, retry_after_s=2.1)) == "3"
    assert retry_after_header(UnavailableError("")) == "1"
    assert retry_after_header(InvalidError("")) is None


def test_an_unexpected_exception_is_logged_and_hidden(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        error = as_error(RuntimeError("password=hunter2"), "r-1")
    assert type(error) is InfaasError
    assert (error.code, error.text) == (Code.INTERNAL, HIDDEN_TEXT)
    assert "hunter2" in caplog.text
