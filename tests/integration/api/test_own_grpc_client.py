"""Our own gRPC client against the real edge: what it asks for is what was stated, and nothing else."""

from __future__ import annotations

import asyncio
import socket

import numpy as np
import pytest
from serving import Serving

from infaas.client import QueryError, Requirements
from infaas.client_grpc import GrpcClient
from infaas.domain.query import Code

INPUTS = {name: np.arange(16, dtype=np.int32).reshape(1, 16) for name in ("INPUT0", "INPUT1")}


async def test_a_query_that_states_nothing_has_no_latency_objective_and_one_that_asks_has(edges: Serving) -> None:
    with GrpcClient(edges.grpc) as client:
        for deadline_s, requirements in ((None, None), (5.0, None), (5.0, Requirements(slo_latency_ms=250))):
            answer = await asyncio.to_thread(client.infer, "simple", INPUTS, requirements, deadline_s=deadline_s)
            np.testing.assert_array_equal(answer.outputs["OUTPUT0"], 2 * INPUTS["INPUT0"])
    stated = [query.requirements.latency_s for query in edges.service.seen]
    assert stated[0] is None
    assert stated[1] == pytest.approx(5.0, abs=1.0)
    assert stated[2] == 0.25


def test_a_server_that_never_answers_is_given_up_in_words() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        target = f"127.0.0.1:{deaf.getsockname()[1]}"
        with GrpcClient(target, timeout_s=0.2) as client, pytest.raises(QueryError) as caught:
            client.infer("simple", INPUTS)
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.text == f"{target} did not answer within 0.2 s"
