"""A worker's model autoscaler over real instances: what it loads serves, what it gives up loses nothing, and all of it
is said with its reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from infaas_worker.batches import Ran
from infaas_worker.decide.events import Queries
from infaas_worker.decide.scale import Limits
from infaas_worker.decide.serving import Serving
from infaas_worker.executors.base import BatchIn, Executors, QueryIn, Value
from infaas_worker.executors.isolated import IsolatedExecutor
from infaas_worker.instances import Instances
from infaas_worker.loading import Loader
from infaas_worker.scaling import ModelAutoscaler
from worker_values import published, x

from infaas.clock import SystemClock
from infaas.domain.action import Action, Autoscaling, Cause, VariantUse
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Code
from infaas.domain.variant import Isolation, Variant
from infaas.domain.wish import Wish, Wishes
from infaas.repository.base import open_repository
from infaas.rpc.codec import decode, encode
from infaas.rpc.v1 import worker_pb2
from infaas.testing import graphs
from infaas.testing.builders import a_profile
from infaas.testing.worker_driver import WAIT_S, ControllerEnd

ONE = InstanceId("i1")
HURRIED = Limits(upscale_delay_s=0.0, downscale_delay_s=0.0)
LOOK_S = 0.02
ROUNDS = 20
"""Some twenty milliseconds a run."""


class Caller:
    """Keeps one instance running: the next batch is sent as soon as the last is answered."""

    id = "c1"

    def __init__(self, instances: Instances, instance: InstanceId) -> None:
        self._instances = instances
        self._instance = instance
        self._sent = 0
        self.answered = 0
        self.refusals: list[Code] = []
        self.is_on = False

    def begin(self) -> None:
        self.is_on = True
        self._send()

    def _send(self) -> None:
        self._sent += 1
        tensor = x(1.0)
        batch = BatchIn((tensor.name,), (tensor.datatype,), (QueryIn(1, (Value(tensor.shape, tensor.data),)),))
        deadline = self._instances.now() + 60.0
        self._instances.submit(self, self._sent, self._instance, batch, Queries.of((self._sent, 1, deadline)))

    def started(self, batch: int) -> None:
        """Of no interest here."""

    def ran(self, batch: int, ran: Ran) -> None:
        self.answered += 1
        self._next()

    def refused(self, batch: int, code: Code, text: str, was_running: bool, held_s: float) -> None:
        self.refusals.append(code)
        self.is_on = False

    def _next(self) -> None:
        if self.is_on:
            asyncio.get_running_loop().call_soon(self._send)


class Site:
    """A worker's inside, without its sockets."""

    def __init__(self, folder: Path, limits: Limits, idle_cores: float) -> None:
        self.repository = open_repository(str(folder))
        clock = SystemClock()
        executors = Executors(isolate=IsolatedExecutor)
        serving = Serving((0, 1), 2**30, probe_interval_s=60.0)
        self.instances = Instances(serving, Loader(self.repository, executors), clock, lambda: None)
        self.autoscaler = ModelAutoscaler(self.instances, limits, clock, lambda: idle_cores, is_on=True)

    def load(self, **facts: object) -> Variant:
        graph = graphs.slow(ROUNDS)
        self.repository.put_bytes(graph.data)
        variant = graph.variant("v1", threads=1, **facts)
        self.instances.load(ONE, variant)
        return variant

    def ready(self) -> list[InstanceId]:
        return [key for key, one in self.instances.serving.instances.items() if one.state is InstanceState.READY]

    async def until(self, holds: Callable[[], bool], *, looks: bool = True) -> None:
        """Looking again and again, as the worker does each second."""
        async with asyncio.timeout(WAIT_S):
            while not holds():
                if looks:
                    await self.autoscaler.look()
                await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def a_site(folder: Path, limits: Limits = HURRIED, idle_cores: float = 2.0) -> AsyncIterator[Site]:
    site = Site(folder, limits, idle_cores)
    try:
        yield site
    finally:
        await site.instances.close()


async def test_a_busy_instance_gets_another_beside_it_that_serves_and_goes_again_when_it_is_quiet(tmp_path):
    async with a_site(tmp_path) as site:
        site.load(p95_ms=20.0)
        await site.until(lambda: site.ready() == [ONE])
        caller = Caller(site.instances, ONE)
        caller.begin()
        await site.until(lambda: len(site.ready()) == 2)
        (other,) = [id for id in site.ready() if id != ONE]
        beside = Caller(site.instances, other)
        beside.begin()
        await site.until(lambda: beside.answered >= 5)
        caller.is_on = beside.is_on = False
        await site.until(lambda: len(site.instances.serving.instances) == 1)
        done = [step for step in site.autoscaler.said().steps if step.action is not Action.HOLD]
        assert [(step.action, step.cause, step.replicas) for step in done] == [
            (Action.REPLICATE, Cause.BUSY, 1),
            (Action.UNLOAD, Cause.QUIET, 2),
        ]
        assert done[0].instance == other
        assert caller.refusals == beside.refusals == []


async def test_an_instance_that_is_given_up_answers_what_it_has_first(tmp_path):
    async with a_site(tmp_path) as site:
        variant = site.load(p95_ms=20.0)
        site.instances.load(InstanceId("i2"), variant)
        await site.until(lambda: len(site.ready()) == 2)
        callers = [Caller(site.instances, id) for id in site.ready()]
        for caller in callers:
            caller.begin()
        site.instances.unload(ONE, "quiet")
        await site.until(lambda: ONE not in site.instances.serving.instances, looks=False)
        first = next(caller for caller in callers if not caller.is_on)
        assert first.answered >= 1, "what ran was answered"
        assert first.refusals == [Code.DRAINING], "and what came then is told to go elsewhere"


async def test_a_replica_is_as_isolated_as_the_instance_beside_it(tmp_path):
    async with a_site(tmp_path) as site:
        site.load(p95_ms=20.0, isolation=Isolation.PROCESS)
        await site.until(lambda: site.ready() == [ONE])
        caller = Caller(site.instances, ONE)
        caller.begin()
        await site.until(lambda: len(site.ready()) == 2)
        caller.is_on = False
        assert {one.isolation for one in site.instances.serving.instances.values()} == {Isolation.PROCESS}


async def test_an_instance_that_was_loaded_for_a_suspect_is_no_replica(tmp_path):
    async with a_site(tmp_path) as site:
        variant = site.load(p95_ms=20.0)
        suspect = InstanceId("i2")
        site.instances.load(suspect, replace(variant, isolation=Isolation.PROCESS))
        await site.until(lambda: len(site.ready()) == 2)
        await site.autoscaler.look()
        assert site.autoscaler.said().steps == (), "a warm-up is nobody's load"
        (use,) = site.autoscaler.said().uses
        assert (use.replicas, use.loading) == (1, 0)
        caller = Caller(site.instances, ONE)
        caller.begin()
        await site.until(lambda: len(site.ready()) == 3)
        caller.is_on = False
        await site.until(lambda: len(site.ready()) == 2)
        found = site.instances.serving.instances
        assert {one.isolation for id, one in found.items() if id != suspect} == {Isolation.THREAD}
        assert found[suspect].state is InstanceState.READY


async def test_where_no_core_is_idle_nothing_is_loaded_and_that_is_said(tmp_path):
    async with a_site(tmp_path, idle_cores=0.1) as site:
        site.load(p95_ms=20.0)
        await site.until(lambda: site.ready() == [ONE])
        caller = Caller(site.instances, ONE)
        caller.begin()
        await site.until(lambda: bool(site.autoscaler.said().steps))
        answered = caller.answered
        await site.until(lambda: caller.answered > answered + 5)
        caller.is_on = False
        (step,) = site.autoscaler.said().steps
        assert (step.action, step.cause) == (Action.HOLD, Cause.NO_CORES)
        assert site.ready() == [ONE]


async def test_a_draining_worker_is_left_alone(tmp_path):
    limits = Limits(downscale_to_zero_delay_s=0.01)
    async with a_site(tmp_path, limits) as site:
        site.load(p95_ms=20.0)
        await site.until(lambda: site.ready() == [ONE], looks=False)
        site.instances.begin_drain("asked for")
        for _ in range(3):
            await site.autoscaler.look()
            await asyncio.sleep(LOOK_S)
        assert site.autoscaler.said().steps == ()
        site.instances.end_drain()
        await site.until(lambda: not site.instances.serving.instances)
        assert [step.cause for step in site.autoscaler.said().steps] == [Cause.UNUSED]


@pytest.mark.parametrize("is_on", [True, False])
async def test_a_real_worker_unloads_what_nobody_uses_and_says_so_in_its_reports(start, is_on):
    scaling = {"enabled": is_on, "period_s": 0.1, "downscale_to_zero_delay_s": 0.3}
    worker = start(worker={"autoscaling": scaling, "heartbeat_s": 0.1})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double()))
        if not is_on:
            seen = len(end.reports)
            await end.until(lambda: len(end.reports) > seen + 10)
            assert end.state("i1") == "READY"
            said = decode(end.reports[-1].autoscaling, Autoscaling)
            assert said == Autoscaling(is_on=False, uses=(VariantUse(VariantName("v1"), 1, 0, 0.0),))
            return
        await end.until(lambda: not end.worker.instances)
        await end.until(lambda: bool(decode(end.reports[-1].autoscaling, Autoscaling).steps))
        (step,) = decode(end.reports[-1].autoscaling, Autoscaling).steps
        assert (step.action, step.cause, step.variant, step.instance) == (Action.UNLOAD, Cause.UNUSED, "v1", "i1")
        gone = [report for report in end.reports if b"DRAINING" in report.worker]
        assert b"nobody has asked for it" in gone[0].worker


async def test_a_real_worker_lets_a_smaller_variant_take_over_from_one_that_has_little_to_do(start):
    scaling = {"exchange": True, "period_s": 0.1, "downscale_delay_s": 0.3}
    worker = start(worker={"autoscaling": scaling, "heartbeat_s": 0.1, "memory_bytes": 2**30})
    big = published(worker, graphs.double())
    big = replace(big, profile=a_profile(memory_mib=500.0))
    small = replace(big, name=VariantName("small"), profile=a_profile(memory_mib=5.0))
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", big)
        await end.until(lambda: decode(end.reports[-1].autoscaling, Autoscaling).exchanges)
        wish = Wish(big.name, (small.name,), 2, 2, 1.0)
        await end.send(wishes=worker_pb2.Wishes(wishes=encode(Wishes((wish,), (small,)))))
        await end.until(lambda: [one.variant for one in end.worker.instances.values()] == ["small"])
        await end.until(lambda: decode(end.reports[-1].autoscaling, Autoscaling).given_up == (big.name,))
        (there,) = end.worker.instances.values()
        answer = await end.infer(there.id, x(2.0))
        assert not answer.error_code
        began, ended = decode(end.reports[-1].autoscaling, Autoscaling).steps
        assert (began.action, began.cause, began.variant) == (Action.DOWNGRADE, Cause.CHEAPER, big.name)
        assert began.instance == there.id
        assert (ended.action, ended.cause, ended.instance) == (Action.UNLOAD, Cause.REPLACED, "i1")
        assert ended.reason == "small does its work"


async def test_wishes_that_cannot_be_read_cost_nothing(start):
    worker = start(worker={"autoscaling": {"exchange": True, "period_s": 0.1}, "heartbeat_s": 0.1})
    async with ControllerEnd(worker.address) as end:
        await end.ready("i1", published(worker, graphs.double()))
        await end.send(wishes=worker_pb2.Wishes(wishes=b"{"))
        answer = await end.infer("i1", x(2.0))
        assert not answer.error_code
