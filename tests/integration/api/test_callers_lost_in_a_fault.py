"""A fault of ours while a caller is let go costs no connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from computing_service import ComputingService
from infaas_controller.api.http_limits import Limits
from infaas_controller.ports import Waiter
from serving import serving

from infaas.domain.query import Query

NUMBERS = [{"name": f"INPUT{n}", "shape": [1, 16], "datatype": "INT32", "data": [n] * 16} for n in (0, 1)]


class Faulty(ComputingService):
    """Fails when a query is dropped, after it was."""

    def begin(self, query: Query, waiter: Waiter) -> Callable[[], None]:
        drop = super().begin(query, waiter)

        def drop_and_fail() -> None:
            drop()
            raise KeyError("a fault in dropping")

        return drop_and_fail


async def test_who_leaves_while_dropping_fails_is_not_counted_for_ever() -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context.get("exception")))
    service = Faulty()
    service.hold = asyncio.Event()
    async with serving(service, limits=Limits(connections=1)) as edges:
        host, port = edges.http.rsplit(":", 1)
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"inputs": NUMBERS}).encode()
        writer.write(
            b"POST /v2/models/simple/infer HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await service.arrived.wait()
        writer.close()
        await service.dropped.wait()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200"), "there is room for one connection, and nobody has it"
        writer.close()
    assert [type(fault) for fault in faults] == [KeyError]
