"""A controller is told to end while it is asked over connections that callers keep: it answers whatever it was asked,
and whoever comes after is told in a way that says that asking another one helps."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from infaas.bench import grpc as bench_grpc
from infaas.bench.grpc import GrpcChannels
from infaas.bench.pacer import Pacer
from infaas.bench.reply import OK, Reply
from infaas.bench.rest import NeverAnsweredError, RestPool, query_bytes
from infaas.demo import family
from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.load import arrivals

pytestmark = [pytest.mark.long, pytest.mark.timeout(200)]
MODEL = "digits-cnn-medium"
HEADERS = {"x-infaas-slo-latency-ms": "10000", "x-infaas-slo-accuracy-min": "0"}
CALLERS = 2
MEASURED_S = 2.0
SHARE = 0.3
"""Of what it answers to so many callers at most, so that what is told here is of draining and not of too much load."""
TOLD_AT_S = 2.0
AFTER_S = 0.5
"""Queries come for so long after its end."""
LONGEST_S = 60.0
NOT_LISTENING = "not-listening"
RETRYABLE = {"draining", NOT_LISTENING}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        cluster = Cluster(Path(folder), controllers=1, workers=1)
        with cluster.running():
            cluster.register(MODEL)
            yield cluster


@pytest.fixture
def controller(cluster: Cluster) -> Iterator[Cluster]:
    """There and ready before each; started again after it."""
    cluster.wait_whole()
    yield cluster
    wait_for(lambda: cluster.has_ended("controller-1"), "it to end")
    cluster.kill("controller-1")
    cluster.start("controller-1")


def images() -> np.ndarray:
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        return np.asarray(data[family.INPUT][:4], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Drained:
    queries: list[tuple[float, str]]
    """When each was due, and how it ended."""
    over_s: float
    """When the controller had ended."""


async def capacity(ask: Callable[[], Awaitable[Reply]]) -> float:
    """Answers a second to callers who ask one after the other."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def call() -> int:
        count = 0
        while loop.time() < began + MEASURED_S:
            assert (await ask()).code == OK
            count += 1
        return count

    counts = await asyncio.gather(*(call() for _ in range(CALLERS)))
    return sum(counts) / (loop.time() - began)


async def drained(cluster: Cluster, ask: Callable[[], Awaitable[Reply]]) -> Drained:
    """While it is told to end, and until it has ended. Raises TimeoutError where it does not."""
    found: list[tuple[float, str]] = []
    over_s: float | None = None
    rate = SHARE * await capacity(ask)
    loop = asyncio.get_running_loop()

    async def one(due_s: float) -> None:
        try:
            found.append((due_s, (await ask()).code))
        except (ConnectionRefusedError, NeverAnsweredError):
            found.append((due_s, NOT_LISTENING))
        except OSError as error:
            found.append((due_s, f"{type(error).__name__}: {error}"))

    began = loop.time()
    loop.call_later(TOLD_AT_S, cluster.signal, "controller-1", signal.SIGTERM)
    queries = []
    with Pacer() as pacer:
        for due_s in arrivals(rate, LONGEST_S, 1):
            await pacer.until(began + due_s)
            if over_s is None and cluster.has_ended("controller-1"):
                over_s = due_s
            if over_s is not None and due_s > over_s + AFTER_S:
                break
            queries.append(asyncio.create_task(one(due_s), name="query"))
    async with asyncio.timeout(60):
        await asyncio.gather(*queries)
    if over_s is None:
        raise TimeoutError(f"the controller did not end within {LONGEST_S - TOLD_AT_S:g} s of SIGTERM")
    return Drained(found, over_s)


def check(found: Drained) -> None:
    counts = Counter(code for _, code in found.queries)
    assert {code for due_s, code in found.queries if due_s < TOLD_AT_S - 0.5} == {OK}
    assert set(counts) <= {OK, *RETRYABLE}, counts
    assert {code for due_s, code in found.queries if due_s >= found.over_s} <= RETRYABLE, counts


def test_over_rest_nothing_that_was_asked_on_a_kept_connection_goes_unanswered(controller: Cluster) -> None:
    query = query_bytes(MODEL, {family.INPUT: images()}, HEADERS)
    pool = RestPool(controller.urls()[0])

    async def work() -> Drained:
        assert (await pool.ask(query)).code == OK  # loaded
        found = await drained(controller, lambda: pool.ask(query))
        pool.close()
        return found

    check(asyncio.run(work()))


def test_over_grpc_calls_end_answered_or_with_a_status_that_says_to_try_elsewhere(controller: Cluster) -> None:
    query = bench_grpc.query_bytes(MODEL, {family.INPUT: images()})
    ports = json.loads((controller.folder / "controller-1" / "run" / "controller.json").read_text())

    async def work() -> Drained:
        channels = GrpcChannels(f"127.0.0.1:{ports['grpc_port']}")
        metadata = tuple(HEADERS.items())
        assert (await channels.ask(query, metadata)).code == OK

        async def ask() -> Reply:
            reply = await channels.ask(query, metadata)
            if reply.code != OK and reply.is_retryable:  # UNAVAILABLE, from the server or as nobody listens
                return Reply("draining", True, reply.fields, reply.content)
            return reply

        found = await drained(controller, ask)
        await channels.close()
        return found

    check(asyncio.run(work()))
