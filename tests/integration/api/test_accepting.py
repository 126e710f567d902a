"""Callers who connect while the loop has much to do are not left waiting for a turn of it each."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvloop
from infaas_controller.listeners import ACCEPTED_AT_ONCE, HttpListener, bind

CALLERS = 4 * ACCEPTED_AT_ONCE


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def started(listener: HttpListener) -> None:
    while not listener._server.started:  # noqa: ASYNC110  uvicorn tells nobody
        await asyncio.sleep(0)


def test_many_are_accepted_in_a_turn_of_the_loop() -> None:
    async def turns_until_all_are_in() -> int:
        listener = HttpListener(app, bind("127.0.0.1", 0, "controller.http_port"), drain_timeout_s=1.0)
        serving = asyncio.create_task(listener.run())
        await started(listener)
        callers = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(CALLERS)]
        turns, connections = 0, listener._server.server_state.connections
        while len(connections) < CALLERS:
            turns += 1
            await asyncio.sleep(0)
        for caller in callers:
            caller.close()
        listener.stop()
        await serving
        return turns

    assert uvloop.run(turns_until_all_are_in()) <= CALLERS // ACCEPTED_AT_ONCE + 4


def test_every_descriptor_that_listens_is_closed_at_the_end() -> None:
    async def serve_and_stop() -> int:
        listener = HttpListener(app, bind("127.0.0.1", 0, "controller.http_port"), drain_timeout_s=1.0)
        port = listener.port
        serving = asyncio.create_task(listener.run())
        await started(listener)
        listener.stop()
        await serving
        return port

    port = uvloop.run(serve_and_stop())
    bind("127.0.0.1", port, "controller.http_port").close()
    with socket.socket() as caller:
        assert caller.connect_ex(("127.0.0.1", port)) != 0
