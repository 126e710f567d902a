"""A large input that may be in quarantine is digested before its query is decided on: elsewhere and within its time."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from infaas_controller import digesting
from infaas_controller.ports import QueryFailedError
from infaas_controller.quarantine import digest
from infaas_controller.queues import Ticket

from infaas.domain.query import Code, Query
from infaas.domain.tensor import Datatype, Tensor
from infaas.testing.builders import a_variant, an_instance
from infaas.testing.fake_worker import FakeWorker

Opener = Callable[..., Any]
IMAGE = (Tensor("image", Datatype.FP32, (1, 64), struct.pack("<f", 13) * 64),)
PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def _every_input_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infaas_controller.quarantine.DIGESTED_AT_ONCE_BYTES", 0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Digests take until it is set."""
    finish = threading.Event()

    def digest_later(query: Query) -> bytes:
        finish.wait(PATIENCE_S)
        return digest(query)

    monkeypatch.setattr(digesting, "digest", digest_later)
    yield finish
    finish.set()


def put_in_quarantine(c: Any) -> None:
    guilty = Ticket(0, c.query(inputs=IMAGE), None)
    guilty.digest = digest(guilty.query)
    c.dispatcher.engine.quarantine.add(guilty, c.clock.now())


async def failure(waiting: Any) -> QueryFailedError:
    with pytest.raises(QueryFailedError) as caught:
        async with asyncio.timeout(PATIENCE_S):
            await waiting
    return caught.value


async def test_work_that_hangs_on_the_shared_threads_holds_up_no_digest(cluster: Opener) -> None:
    async with cluster([a_variant("v1")], [FakeWorker("w1", [an_instance("i1")])]) as c:
        put_in_quarantine(c)
        shared, hangs = ThreadPoolExecutor(1), threading.Event()
        asyncio.get_running_loop().set_default_executor(shared)
        shared.submit(hangs.wait)
        try:
            error = await failure(c.dispatcher.submit(c.query(inputs=IMAGE)))
        finally:
            hangs.set()
    assert error.code is Code.MODEL_FAILED


async def test_a_query_waits_for_its_digest_until_its_deadline_and_leaves_a_decision(
    cluster: Opener, slow: threading.Event
) -> None:
    async with cluster([a_variant("v1")], [FakeWorker("w1", [an_instance("i1")])]) as c:
        put_in_quarantine(c)
        error = await failure(c.dispatcher.submit(c.query(inputs=IMAGE, latency_ms=200)))
        assert (error.code, error.outcome.slo_met) == (Code.DEADLINE_PASSED, False)
        decision = c.dispatcher.decision(error.outcome.decision_id)
        assert decision is not None
        assert (decision.outcome, decision.reason) == (Code.DEADLINE_PASSED.value, error.text)
        assert c.dispatcher.in_flight() == 0
        slow.set()


async def test_a_query_that_waits_for_its_digest_is_counted_and_refused_when_the_controller_drains(
    cluster: Opener, slow: threading.Event
) -> None:
    worker = FakeWorker("w1", [an_instance("i1")])
    async with cluster([a_variant("v1")], [worker]) as c:
        put_in_quarantine(c)
        waiting = asyncio.create_task(c.dispatcher.submit(c.query(inputs=IMAGE)), name="waiting")
        await c.until(lambda: c.dispatcher.in_flight() == 1)
        c.dispatcher.begin_drain()
        drained = asyncio.create_task(c.dispatcher.drained(), name="drained")
        await asyncio.wait({drained}, timeout=0)
        assert not drained.done()
        slow.set()
        error = await failure(waiting)
        async with asyncio.timeout(PATIENCE_S):
            await drained
        assert (error.code, error.is_retryable) == (Code.DRAINING, True)
        assert not worker.ran


async def test_a_caller_that_leaves_while_its_input_is_digested_leaves_nothing_behind(
    cluster: Opener, slow: threading.Event
) -> None:
    async with cluster([a_variant("v1")], [FakeWorker("w1", [an_instance("i1")])]) as c:
        put_in_quarantine(c)
        waiting = asyncio.create_task(c.dispatcher.submit(c.query(inputs=IMAGE)), name="waiting")
        await c.until(lambda: c.dispatcher.in_flight() == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert c.dispatcher.in_flight() == 0
        slow.set()


async def test_an_input_whose_digest_fails_is_not_kept(cluster: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(query: Query) -> bytes:
        raise MemoryError

    async with cluster([a_variant("v1")], [FakeWorker("w1", [an_instance("i1")])]) as c:
        monkeypatch.setattr(digesting, "digest", fail)
        quarantine = c.dispatcher.engine.quarantine
        suspect = Ticket(7, c.query(inputs=IMAGE), None)
        quarantine.suspect(suspect, c.clock.now())
        assert quarantine.ordered == 1
        await c.dispatcher.submit(c.query(inputs=IMAGE))  # commands are performed
        await c.until(lambda: quarantine.ordered == 0)
