"""A process that ends while others serve behind the same ports: callers who come find the others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from computing_service import ComputingService
from infaas_controller.api.grpc import GrpcServer
from infaas_controller.api.http import create_app
from infaas_controller.doors import Doors
from infaas_controller.listeners import HttpListener, bind
from infaas_controller.siblings import Own, Siblings

from infaas.aio.supervise import Supervisor
from infaas.clock import SystemClock
from infaas.domain.ids import ControllerId
from infaas.observe.live import Live
from infaas.observe.metrics import Metrics, exposition_app
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.processes.master import PORTS, make_seats
from infaas.processes.ports import port_of, reserve
from infaas.processes.seat import Seat
from infaas.settings import Settings

PATIENCE_S = 30.0
GRACE_S = 0.5
CALLERS = 24
HOST = "127.0.0.1"
INPUTS = ("INPUT0", "INPUT1")
BODY = {"inputs": [{"name": name, "shape": [1, 16], "datatype": "INT32", "data": [1] * 16} for name in INPUTS]}


@dataclass
class Process:
    """What there is of one here: its doors, and a service behind them."""

    service: ComputingService
    doors: Doors
    supervisor: Supervisor


@asynccontextmanager
async def a_process(seat: Seat, settings: Settings) -> AsyncIterator[Process]:
    service, metrics = ComputingService(), Metrics()
    siblings = Siblings(seat, ControllerId(seat.name), SystemClock())
    siblings.speak_with(lambda: Own(Live(processes=1), is_leader=False, is_ready=True, journal_dropped=0, starts=1))
    own, app = settings.controller, create_app(service, settings, (), metrics)
    doors = Doors(
        seat,
        settings,
        siblings,
        GrpcServer(service, settings, metrics),
        HttpListener(app, bind(HOST, own.http_port, "http", is_shared=True), drain_timeout_s=PATIENCE_S, fast=app.fast),
        HttpListener(
            exposition_app(metrics.registry, lambda _: None),
            bind(HOST, own.metrics_port, "metrics", is_shared=True),
            drain_timeout_s=1.0,
        ),
        HttpListener(app, bind(HOST, 0, "own"), drain_timeout_s=1.0),
    )
    supervisor = Supervisor("test")
    await doors.open(supervisor)
    try:
        yield Process(service, doors, supervisor)
    finally:
        await doors.close(GRACE_S)
        await supervisor.stop()


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[Settings]:
    """The ports are taken, by somebody who never listens."""
    holders = {name: reserve(HOST, 0, name) for name in PORTS}
    ports = {name: port_of(holder) for name, holder in holders.items()}
    own = {"host": HOST, "drain_timeout_s": PATIENCE_S, **ports}
    yield Settings.model_validate({"state_dir": tmp_path, "controller": own})
    for holder in holders.values():
        holder.close()


@pytest.fixture
async def processes(settings: Settings) -> AsyncIterator[tuple[Process, Process]]:
    seats = make_seats(2, "c-1")
    async with a_process(seats[0], settings) as first, a_process(seats[1], settings) as second:
        yield first, second
    for descriptor in seats[0].descriptors:
        os.close(descriptor)


def url(settings: Settings) -> str:
    return f"http://{HOST}:{settings.controller.http_port}/v2/models/simple/infer"


async def ask(settings: Settings) -> httpx.Response:
    """By a connection of its own."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
        return await client.post(url(settings), json=BODY)


async def call(settings: Settings) -> pb.ModelInferResponse:
    """The same over gRPC."""
    message = pb.ModelInferRequest(model_name="simple")
    for name in INPUTS:
        message.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        message.raw_input_contents.append(np.ones(16, np.int32).tobytes())
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"{HOST}:{settings.controller.grpc_port}", options=options) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return await infer(message, timeout=PATIENCE_S)


async def both_are_found(settings: Settings, first: Process, second: Process) -> None:
    while not (first.service.seen and second.service.seen):
        try:
            assert (await ask(settings)).status_code == 200
        except httpx.ConnectError:
            continue  # neither listens yet


async def open_at(*services: ComputingService, count: int) -> None:
    """Wait until so many queries have come."""
    while sum(service.in_flight() for service in services) < count:
        for service in services:
            service.arrived.clear()
        news = [asyncio.create_task(service.arrived.wait()) for service in services]
        await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
        for each in news:
            each.cancel()


async def test_while_another_process_serves_nobody_new_comes_to_one_that_drains(
    settings: Settings, processes: tuple[Process, Process]
) -> None:
    leaving, staying = processes
    async with asyncio.timeout(PATIENCE_S):
        await both_are_found(settings, leaving, staying)
        leaving.service.hold = staying.service.hold = asyncio.Event()
        open_queries = [asyncio.create_task(ask(settings)) for _ in range(CALLERS)]
        open_calls = [asyncio.create_task(call(settings)) for _ in range(CALLERS)]
        await open_at(leaving.service, staying.service, count=2 * CALLERS)
        had = len(leaving.service.seen)
        assert leaving.service.in_flight() > 0

        leaving.doors.withdraw()

        staying_hold, staying.service.hold = staying.service.hold, None
        assert {(await ask(settings)).status_code for _ in range(CALLERS)} == {200}
        assert {(await call(settings)).model_name for _ in range(CALLERS)} == {"simple"}
        assert len(leaving.service.seen) == had, "the other answered all of them"
        staying_hold.set()
        assert {(await each).status_code for each in open_queries} == {200}, "what was here is finished"
        assert {(await each).model_name for each in open_calls} == {"simple"}


async def test_the_last_process_keeps_the_ports_so_that_somebody_says_that_it_drains(
    settings: Settings, processes: tuple[Process, Process]
) -> None:
    first, last = processes
    async with asyncio.timeout(PATIENCE_S):
        await both_are_found(settings, first, last)
        first.doors.withdraw()
        last.doors.withdraw()
        last.service.ready = False
        ready = f"http://{HOST}:{settings.controller.http_port}/v2/health/ready"
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
            assert (await client.get(ready)).status_code == 503
