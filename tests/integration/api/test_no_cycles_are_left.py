"""A query leaves nothing behind that only the cycle collector could find: full collections are minutes apart."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from types import TracebackType

import pytest
from infaas_controller.api.bulk.weigh import LOOP_BYTES
from serving import Serving

from infaas.errors import InfaasError

ROW = {"datatype": "INT32", "shape": [1, 16], "data": list(range(16))}
GOOD = json.dumps({"inputs": [{"name": name, **ROW} for name in ("INPUT0", "INPUT1")]}).encode()
BAD = b'{"inputs": ['
LARGE_BAD = BAD + b" " * LOOP_BYTES
QUERIES = 30
PATIENCE_S = 30.0


async def queried(edges: Serving, body: bytes) -> int:
    """Over one connection."""
    host, port = edges.http.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    status = 0
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(QUERIES):
            writer.write(
                b"POST /v2/models/simple/infer HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
            await reader.readexactly(int(length.split(b": ")[1]))
            status = int(head.split()[1])
    writer.close()
    await writer.wait_closed()
    return status


def kept() -> Counter[str]:
    """What the collector would have to find, by kind."""
    kinds = (TracebackType, InfaasError, asyncio.Task)
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))


@pytest.mark.parametrize(("body", "status"), [(GOOD, 200), (BAD, 400), (LARGE_BAD, 400)])
async def test_queries_leave_no_cycles(edges: Serving, body: bytes, status: int) -> None:
    assert await queried(edges, body) == status
    gc.collect()
    before = kept()
    gc.disable()
    try:
        assert await queried(edges, body) == status
        grown = {kind: count for kind, count in (kept() - before).items() if count >= QUERIES}
    finally:
        gc.enable()
    assert not grown
