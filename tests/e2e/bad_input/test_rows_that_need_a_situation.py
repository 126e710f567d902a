"""The rows of the error table that no request causes by itself: load, a stopped worker, a model that raises, size.

Each ends with nothing in flight, nothing queued, and a system that serves.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from bad_rest import GOOD, INFER
from guarded_system import MAX_BODY_BYTES, READ_TIMEOUT_S, Guarded, Table
from raw_callers import CREDENTIAL, RestCaller, Seen, body_of, message_of, request_bytes, rest
from running_system import wait_for

from infaas.client import Client
from infaas.oip.v2 import grpc_service_pb2 as pb

pytestmark = pytest.mark.long
MEMORY_SLACK_BYTES = 48 * 2**20


@pytest.fixture(autouse=True)
def leaves_nothing(guarded: Guarded) -> Iterator[None]:
    yield
    guarded.assert_nothing_is_held()
    guarded.assert_it_serves()


def query(headers: dict[str, str] | None = None, items: int = 1) -> bytes:
    return request_bytes("POST", INFER, json.dumps(body_of(items)).encode(), headers or {})


@contextmanager
def stopped_worker(guarded: Guarded) -> Iterator[None]:
    """The worker's process gets no processor time; its connections stay."""
    worker = guarded.process(next(p.name for p in guarded.system.record.programs if p.name.startswith("worker")))
    family = [worker, *worker.children(recursive=True)]
    for process in family:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in reversed(family):
            process.send_signal(signal.SIGCONT)


def test_a_deadline_that_passes_is_504_over_both_protocols(guarded: Guarded, table: Table) -> None:
    slo = {"x-infaas-slo-latency-ms": "700"}
    with ThreadPoolExecutor(1) as pool, stopped_worker(guarded):
        second = pool.submit(guarded.grpc.call, message_of(), list(slo.items()))
        over_rest, over_grpc = rest(guarded.port, query(slo)), second.result()
        later = rest(guarded.port, query(slo))
    table.note("REST", "its deadline passes", over_rest)
    table.note("gRPC", "its deadline passes", over_grpc)
    table.note("REST", "its deadline cannot be met now", later)
    assert (later.status, later.code) == ("429", "deadline-unreachable")
    assert int(later.headers["retry-after"]) >= 1
    assert (over_rest.status, over_rest.code) == ("504", "deadline-passed")
    assert over_rest.headers["x-infaas-dropped-reason"] == "deadline-passed"
    assert (over_grpc.status, over_grpc.code) == ("DEADLINE_EXCEEDED", "deadline-passed")
    assert "the deadline of 700 ms passed" in over_rest.text


def test_a_full_queue_is_429_with_retry_after_over_both_protocols(guarded: Guarded, table: Table) -> None:
    with ThreadPoolExecutor(40) as pool, stopped_worker(guarded):
        waiting: list[Future[Seen]] = [pool.submit(rest, guarded.port, query()) for _ in range(40)]
        refused = wait_for(
            lambda: [one.result() for one in waiting if one.done() and one.result().status == "429"], "a 429"
        )
        over_grpc = guarded.grpc.call(message_of())
    seen = refused[0]
    table.note("REST", "the queue is full", seen)
    table.note("gRPC", "the queue is full", over_grpc)
    assert (seen.code, seen.headers["x-infaas-dropped-reason"]) == ("saturated", "saturated")
    assert int(seen.headers["retry-after"]) >= 1
    assert (over_grpc.status, over_grpc.code) == ("RESOURCE_EXHAUSTED", "saturated")
    assert {one.result().status for one in waiting} == {"200", "429"}  # who waited was answered in the end


def test_no_ready_worker_is_503_with_retry_after_over_both_protocols(guarded: Guarded, table: Table) -> None:
    with Client(guarded.system.endpoints.url, CREDENTIAL["authorization"].split()[1]) as client:
        (worker,) = client.workers()
        client.drain_worker(worker.id)
        try:
            over_rest = rest(guarded.port, query())
            over_grpc = guarded.grpc.call(message_of())
        finally:
            client.resume_worker(worker.id)
            wait_for(lambda: rest(guarded.port, query()).status == "200", "the worker to serve again")
    table.note("REST", "no ready worker", over_rest)
    table.note("gRPC", "no ready worker", over_grpc)
    assert (over_rest.status, over_rest.code) == ("503", "no-worker")
    assert int(over_rest.headers["retry-after"]) >= 1
    assert (over_grpc.status, over_grpc.code) == ("UNAVAILABLE", "no-worker")


def test_a_model_that_raises_is_500_over_both_protocols(guarded: Guarded, table: Table) -> None:
    inputs = [{"name": "index", "shape": [1, 1], "datatype": "INT64", "data": [99]}]
    body = json.dumps({"inputs": inputs}).encode()
    over_rest = rest(guarded.port, request_bytes("POST", "/v2/models/table/infer", body))
    message = pb.ModelInferRequest(model_name="table")
    message.inputs.add(name="index", datatype="INT64", shape=[1, 1])
    message.raw_input_contents.append(np.array([98]).tobytes())
    over_grpc = guarded.grpc.call(message)
    table.note("REST", "the model raises", over_rest)
    table.note("gRPC", "the model raises", over_grpc)
    assert (over_rest.status, over_rest.code) == ("500", "model-failed")
    assert (over_grpc.status, over_grpc.code) == ("INTERNAL", "model-failed")


@pytest.mark.parametrize("framing", ["content-length", "chunks"])
def test_100_mb_are_413_without_being_kept(guarded: Guarded, table: Table, framing: str) -> None:
    controller = guarded.process("controller")
    before = controller.memory_info().rss
    piece = bytes(2**20)
    if framing == "chunks":
        head = request_bytes("POST", INFER, headers={"transfer-encoding": "chunked"}, has_length=False)
        pieces = [head, *[b"%x\r\n%s\r\n" % (len(piece), piece)] * 100]
    else:
        head = request_bytes("POST", INFER, headers={"content-length": str(100 * 2**20)}, has_length=False)
        pieces = [head, *[piece] * 100]
    seen = rest(guarded.port, *pieces)
    table.note("REST", f"a body of 100 MB, by {framing}", seen)
    assert (seen.status, seen.code, seen.headers["connection"]) == ("413", "too-large", "close")
    assert f"at most {MAX_BODY_BYTES} are taken (controller.max_body_bytes)" in seen.text
    assert controller.memory_info().rss - before < MEMORY_SLACK_BYTES


def test_slow_headers_and_bodies_are_408_while_others_are_served(guarded: Guarded, table: Table) -> None:
    with RestCaller(guarded.port) as header, RestCaller(guarded.port) as body:
        header.send(GOOD[:50])
        body.send(GOOD[:-30])
        guarded.assert_it_serves()
        slow_header, slow_body = header.answer(), body.answer()
        assert header.is_closed()
        assert body.is_closed()
    table.note("REST", "a header that stops coming", slow_header)
    table.note("REST", "a body that stops coming", slow_body)
    for seen in (slow_header, slow_body):
        assert (seen.status, seen.code) == ("408", "invalid-argument")
        assert f"a header has {READ_TIMEOUT_S:g} s" in seen.text


def test_callers_that_leave_take_their_queries_along(guarded: Guarded) -> None:
    with stopped_worker(guarded):
        callers = [RestCaller(guarded.port) for _ in range(6)]
        for caller in callers:
            caller.send(query())
        wait_for(lambda: guarded.held().get("infaas_in_flight[]", 0) >= 6, "the queries to be in flight")
        for caller in callers:
            caller.socket.close()
        wait_for(lambda: not [k for k in guarded.held() if k.startswith("infaas_queue_size")], "the queue to be empty")


def test_no_connection_is_left_of_all_this(guarded: Guarded) -> None:
    """Callers that were refused hold no descriptor of the controller."""
    controller = guarded.process("controller")

    def of_callers() -> list[object]:
        return [
            one
            for one in controller.net_connections("tcp")
            if one.laddr.port == guarded.port and one.status == psutil.CONN_ESTABLISHED
        ]

    wait_for(lambda: len(of_callers()) <= 2, "the connections to end", 30.0)  # the supervisor's own may be there
