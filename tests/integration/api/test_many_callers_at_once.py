"""Many connections at once, before a real dispatcher and a real worker process: every caller hears what is its own."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from infaas_controller.api.http_together import FastTogether
from infaas_controller.dispatch import Dispatcher
from infaas_controller.policies import installed_policies
from infaas_controller.ports import Batch
from infaas_controller.workers import WorkerLinks
from serving import Serving, serving

from infaas.clock import SystemClock
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import VariantName
from infaas.domain.query import ANSWERED
from infaas.rpc.codec import encode
from infaas.settings import Settings
from infaas.store.base import Kind
from infaas.store.redis import RedisStore
from infaas.store.view import ViewKeeper
from infaas.testing import graphs
from infaas.testing.builders import a_view
from infaas.testing.worker_driver import WorkerProcess

PATIENCE_S = 60.0
CALLERS = 32
SHARED_BYTES = 2**20
V = VariantName("double.v1.ort-fp32-t1")
COST_PER_1K = 0.5


@dataclass
class Real:
    """The parts of a controller that queries go through, each of them the real one."""

    edges: Serving
    dispatcher: Dispatcher
    links: WorkerLinks
    worker: WorkerProcess
    together: list[int]
    """Of every batch that was told together, how many were."""

    def sample(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in self.edges.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110  (what is waited for is another task's plain state)
                await asyncio.sleep(0.005)

    async def at_rest(self) -> None:
        engine = self.dispatcher.engine
        await self.until(lambda: not self.dispatcher.in_flight() and engine.ledger.is_settled())


@asynccontextmanager
async def dispatching(
    url: str, view: ClusterView, shared_memory_bytes: int
) -> AsyncIterator[tuple[Dispatcher, WorkerLinks]]:
    clock, used = SystemClock(), Settings()
    store = RedisStore(url)
    for kind, parts in ((Kind.TASK, view.tasks), (Kind.MODEL, view.models), (Kind.VARIANT, view.variants)):
        for name, part in parts.items():
            await store.put(kind, name, encode(part))
    keeper = ViewKeeper(store, clock)
    rng = random.Random(7)
    links = WorkerLinks(
        keeper, clock, controller="c-test", draw=rng.random, lost_after_s=used.controller.worker_lost_after_s,
        shared_memory_bytes=shared_memory_bytes,
    )  # fmt: skip
    dispatcher = Dispatcher(keeper, links, installed_policies(), used, clock, rng)
    following = asyncio.create_task(keeper.run(), name="view")
    await keeper.wait_synced()
    dispatcher.start()
    try:
        yield dispatcher, links
    finally:
        await dispatcher.close()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await store.close()


@pytest.fixture
async def real(own_redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Real]:
    async with brought_up(own_redis_server.url, monkeypatch) as found:
        yield found


@pytest.fixture
async def sharing(own_redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Real]:
    """Its batches are large, and the memory for them is not."""
    facts = {"max_batch": 8192, "per_item_ms": 0.0005}
    async with brought_up(own_redis_server.url, monkeypatch, SHARED_BYTES, **facts) as found:
        yield found


@asynccontextmanager
async def brought_up(
    url: str, monkeypatch: pytest.MonkeyPatch, shared_memory_bytes: int = 0, **facts: Any
) -> AsyncIterator[Real]:
    worker = WorkerProcess(url, {"worker": {"shared_memory_bytes": shared_memory_bytes}})
    graph = graphs.double()
    worker.repository.put_bytes(graph.data)
    variant = graph.variant(V, **{"p95_ms": 1.0, "per_item_ms": 0.02, "cost": COST_PER_1K, **facts})
    told = noting_batches(monkeypatch)
    worker.start()
    try:
        async with (
            dispatching(url, a_view(variants=[variant]), shared_memory_bytes) as (dispatcher, links),
            serving(dispatcher) as edges,
        ):
            dispatcher.observe_with(edges.metrics)
            dispatcher.decisions.on_prediction(edges.metrics.observe_predictions)
            found, ledger = Real(edges, dispatcher, links, worker, told), dispatcher.engine.ledger
            await found.until(lambda: any(deck.is_ready for deck in ledger.decks.values()))
            dispatcher.load(V)
            await found.until(lambda: any(lane.is_ready for lane in ledger.lanes_of(V)))
            yield found
    finally:
        worker.end()


def noting_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    told: list[int] = []
    answer = FastTogether.answer

    def noted(self: FastTogether, batch: Batch) -> Sequence[int]:
        left = answer(self, batch)
        told.append(len(batch.ended) - len(left))
        return left

    monkeypatch.setattr(FastTogether, "answer", noted)
    return told


# Callers


_values = itertools.count(1)


@dataclass
class Asked:
    """One request, and what its answer must hold."""

    data: bytes
    inputs: np.ndarray[Any, np.dtype[np.float32]]
    outputs: Sequence[str] = ("y", "z")
    request_id: str | None = None
    closes: bool = False


@dataclass
class Heard:
    """One answer, wholly read and found right."""

    decision_id: str
    request_id: str
    items: int


def asked(
    *, items: int = 1, is_json: bool = False, is_binary: bool = True, outputs: Sequence[str] = (),
    closes: bool = False, request_id: str | None = None, fields: Sequence[str] = (), **more: Any,
) -> Asked:  # fmt: skip
    """With values that no other request of the test has."""
    inputs = np.array([[next(_values)] * 4 for _ in range(items)], np.float32)
    said: dict[str, Any] = {"name": "x", "shape": [items, 4], "datatype": "FP32"}
    said |= {"data": inputs.reshape(-1).tolist()} if is_json else {"parameters": {"binary_data_size": inputs.nbytes}}
    body: dict[str, Any] = {"inputs": [said], **more}
    if outputs:
        body["outputs"] = [{"name": name, "parameters": {"binary_data": is_binary}} for name in outputs]
    elif is_binary:
        body["parameters"] = {"binary_data_output": True}
    head = json.dumps(body).encode()
    data = head if is_json else head + inputs.tobytes()
    lines = ["POST /v2/models/digits/infer HTTP/1.1", "host: t", f"content-length: {len(data)}", *fields]
    lines += [] if is_json else [f"inference-header-content-length: {len(head)}"]
    lines += ["connection: close"] if closes else []
    lines += [] if request_id is None else [f"x-request-id: {request_id}"]
    return Asked("\r\n".join([*lines, "", ""]).encode() + data, inputs, outputs or ("y", "z"), request_id, closes)


class Caller:
    """One connection at a time."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, *requests: Asked) -> None:
        """All of them in one piece."""
        if self._pair is None:
            self._pair = await asyncio.open_connection(self._host, int(self._port))
        self._pair[1].write(b"".join(request.data for request in requests))

    async def ask(self, *requests: Asked) -> list[Heard]:
        await self.send(*requests)
        return [await self.hear(request) for request in requests]

    async def hear(self, request: Asked) -> Heard:
        assert self._pair is not None
        reader, writer = self._pair
        async with asyncio.timeout(PATIENCE_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
            status, *lines = head.strip().split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines)
            body = await reader.readexactly(int(fields["content-length"]))
            assert status == "HTTP/1.1 200 OK", (status, body)
            assert ("connection" in fields) == request.closes
            if request.closes:
                assert await reader.read() == b"", "nothing follows the last answer"
                writer.close()
                self._pair = None
        return heard(request, fields, body)

    def leave(self) -> None:
        """Without a farewell."""
        if self._pair is not None:
            self._pair[1].transport.abort()
            self._pair = None

    def close(self) -> None:
        if self._pair is not None:
            self._pair[1].close()


def heard(request: Asked, fields: dict[str, str], body: bytes) -> Heard:
    length = int(fields.get("inference-header-content-length", len(body)))
    document, rest = json.loads(body[:length]), body[length:]
    decision_id = fields["x-infaas-decision-id"]
    assert (document["model_name"], document["model_version"]) == ("digits", "1")
    assert document["parameters"]["decision_id"] == decision_id
    assert fields["x-infaas-variant"] == document["parameters"]["variant"] == V
    wanted = {"y": request.inputs * 2, "z": request.inputs + 1}
    assert [output["name"] for output in document["outputs"]] == list(request.outputs)
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        found = output["data"] if size is None else np.frombuffer(rest[:size], np.float32).tolist()
        rest = rest if size is None else rest[size:]
        assert (output["shape"], found) == (list(request.inputs.shape), wanted[output["name"]].reshape(-1).tolist())
    assert rest == b""
    assert request.request_id in (None, fields["x-request-id"])
    return Heard(decision_id, fields["x-request-id"], len(request.inputs))


async def all_of(real: Real, rounds: int, make: Callable[[int, int], Sequence[Asked]]) -> list[Heard]:
    """So many callers at once, each of whom asks when it has heard: what `make` says for the caller and the round."""
    callers = [Caller(real.edges.http) for _ in range(CALLERS)]

    async def calls(number: int) -> list[Heard]:
        return [one for round_ in range(rounds) for one in await callers[number].ask(*make(number, round_))]

    try:
        found = await asyncio.gather(*(calls(number) for number in range(CALLERS)))
    finally:
        for caller in callers:
            caller.close()
    return [one for each in found for one in each]


def assert_all_is_counted(real: Real, answers: Sequence[Heard]) -> None:
    """Every decision is its query's own, and every number is exactly that of the answers."""
    count, items = len(answers), sum(one.items for one in answers)
    assert len({one.decision_id for one in answers}) == count
    assert len({one.request_id for one in answers}) == count
    for one in answers:
        decision = real.dispatcher.decision(one.decision_id)
        assert decision is not None
        assert (decision.id, decision.request_id, decision.outcome) == (one.decision_id, one.request_id, ANSWERED)
        assert (decision.variant, decision.slo_met, decision.attempts) == (V, True, 1)
        assert [candidate.reason for candidate in decision.candidates] == ["chosen"]
    newest = real.dispatcher.recent(count + 10)
    assert {one.id for one in newest} == {one.decision_id for one in answers}
    numbers = [int(one.id.rsplit("-", 1)[1]) for one in newest]
    assert numbers == sorted(numbers, reverse=True)
    stats = real.dispatcher.stats()[V]
    assert (stats.success_count, stats.inference_count, stats.fail_count) == (count, items, 0)
    for name, labels in (
        ("infaas_requests_total", {"code": "ok", "model": "digits", "variant": V}),
        ("infaas_requests_total", {}),
        ("infaas_request_duration_seconds_count", {}),
        ("infaas_queue_duration_seconds_count", {"model": "digits"}),
        ("infaas_inference_duration_seconds_count", {"variant": V}),
        ("infaas_predicted_latency_error_ratio_count", {}),
    ):
        assert real.sample(name, **labels) == count, name
    assert real.sample("infaas_batch_size_sum") == items
    assert real.sample("infaas_cost_usd_total") == pytest.approx(COST_PER_1K * items / 1000)


async def test_every_caller_hears_its_own_answers_and_every_decision_is_found(real: Real) -> None:
    answers = await all_of(real, 20, lambda number, _: [asked(items=1 + number % 3)])
    await real.at_rest()
    assert len(answers) == CALLERS * 20
    assert_all_is_counted(real, answers)
    assert sum(real.together) > CALLERS, "or this tests something else"
    assert sum(real.together) <= len(answers)


async def test_answers_written_together_from_shared_memory_are_each_callers_own_and_keep_none_of_it(
    sharing: Real,
) -> None:
    await sharing.until(lambda: sharing.links.documents()[0].shared_memory.is_used)  # type: ignore[union-attr]
    answers = await all_of(sharing, 60, lambda number, _: [asked(items=95 + number % 2)])
    await sharing.at_rest()
    assert_all_is_counted(sharing, answers)
    assert sum(sharing.together) > CALLERS, "or this tests something else"
    shared = sharing.links.documents()[0].shared_memory
    assert shared is not None
    assert shared.output_bytes > 2 * SHARED_BYTES
    assert shared.without_room == 0


KINDS: Sequence[Callable[[int], Sequence[Asked]]] = (
    lambda n: [asked()],
    lambda n: [asked(is_json=True, is_binary=False)],
    lambda n: [asked(is_json=True, outputs=("z", "y"), is_binary=False)],
    lambda n: [asked(items=2, outputs=("z", "y"))],
    lambda n: [asked(outputs=("z",))],
    lambda n: [asked(is_json=True)],
    lambda n: [asked(request_id=f"own-{n}")],
    lambda n: [asked(), asked(request_id=f"piped-{n}"), asked(is_json=True, is_binary=False)],
    lambda n: [asked(items=3), asked(items=3)],
    lambda n: [asked(is_binary=False)],
    lambda n: [asked(id=f"in-body-{n}")],
    lambda n: [asked(fields=["x-infaas-slo-latency-ms: 25000", "x-infaas-priority: critical"])],
    lambda n: [asked(fields=["x-infaas-explain: true"])],
    lambda n: [asked(fields=["traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"])],
)  # fmt: skip


async def test_callers_of_all_kinds_beside_each_other_hear_what_is_their_own(real: Real) -> None:
    def make(number: int, round_: int) -> Sequence[Asked]:
        return KINDS[(number + round_ // 4) % len(KINDS)](1_000 * number + round_)

    answers = await all_of(real, 24, make)
    await real.at_rest()
    assert len(answers) > CALLERS * 24
    assert_all_is_counted(real, answers)
    assert sum(real.together) > CALLERS


@pytest.mark.parametrize("closers", [CALLERS, CALLERS // 2])
async def test_callers_who_close_their_connections_with_every_request_are_answered_as_well(
    real: Real, closers: int
) -> None:
    answers = await all_of(real, 8, lambda number, _: [asked(closes=number < closers)])
    await real.at_rest()
    assert_all_is_counted(real, answers)


async def test_callers_who_leave_in_the_middle_cost_nobody_else_anything(real: Real) -> None:
    leavers = [Caller(real.edges.http) for _ in range(8)]
    stay = asyncio.Event()
    left = 0

    async def leaves(caller: Caller, number: int) -> None:
        nonlocal left
        rng = random.Random(number)
        while not stay.is_set():
            await caller.ask(asked())
            await caller.send(asked())
            left += 1
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            caller.leave()

    leaving = asyncio.gather(*(leaves(caller, number) for number, caller in enumerate(leavers)))
    answers = await all_of(real, 16, lambda number, _: [asked()])
    stay.set()
    await leaving
    for caller in leavers:
        caller.close()
    await real.at_rest()
    assert len(answers) == CALLERS * 16
    assert left > len(leavers)
    ends = Counter(one.outcome for one in real.dispatcher.recent(100_000))
    assert set(ends) <= {ANSWERED, "cancelled"}
    for one in answers:
        decision = real.dispatcher.decision(one.decision_id)
        assert decision is not None
        assert (decision.request_id, decision.outcome) == (one.request_id, ANSWERED)
    stats = real.dispatcher.stats()[V]
    assert stats.success_count == ends[ANSWERED]
    assert real.sample("infaas_requests_total", code="ok") == ends[ANSWERED]
    assert real.sample("infaas_requests_total", code="cancelled") == ends["cancelled"]
    assert len(answers) + left <= ends[ANSWERED] + ends["cancelled"] <= len(answers) + 2 * left


async def test_a_server_that_shuts_down_gives_those_who_wait_their_answers(real: Real) -> None:
    """What it says to them differs in more than values from what it said before."""
    callers = [Caller(real.edges.http) for _ in range(CALLERS)]
    for _ in range(3):
        await asyncio.gather(*(caller.ask(asked()) for caller in callers))
    await real.at_rest()
    real.worker.signal(signal.SIGSTOP)
    requests = [asked() for _ in callers]
    for caller, request in zip(callers, requests, strict=True):
        await caller.send(request)
        request.closes = True  # that is how the server answers, though nobody asked for it
    await real.until(lambda: real.dispatcher.in_flight() == CALLERS)
    said = real.edges.state.default_headers
    await real.until(lambda: real.edges.state.default_headers is not said)  # it says another second
    for connection in list(real.edges.state.connections):
        connection.shutdown()
    real.worker.signal(signal.SIGCONT)
    answers = await asyncio.gather(*(c.hear(r) for c, r in zip(callers, requests, strict=True)))
    await real.at_rest()
    assert real.sample("infaas_requests_total", code="ok") == real.sample("infaas_requests_total") == 4 * CALLERS
    assert len({one.decision_id for one in answers}) == CALLERS
