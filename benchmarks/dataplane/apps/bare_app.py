"""A simple server without any features: one row a request, and as many to a batch as wait.

It chooses nothing, bounds nothing, counts nothing and believes everything it is sent. What it lacks of the best offline
batches goes to sockets, the event loop, two copies of each row, batches that were not full, and cold caches. It is no
bound, but who does more for a query has as much to pay first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from typing import Any

import numpy as np
import uvloop

from infaas.runtimes.onnxruntime_options import open_session

SIZES = (1, 2, 4, 8, 16, 32)
_NEARLY = 0.97
_TRIES = 5
_END, _LENGTH = b"\r\n\r\n", b"\r\ncontent-length:"


class Bare:
    """The model, and who waits for it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        given, self._out = session.get_inputs()[0], session.get_outputs()[0].name
        self._name, self._row = given.name, [int(size) for size in given.shape[1:]]
        self.row_bytes = 4 * math.prod(self._row)
        self._most, self._answer_bytes = self._fastest()
        self._head = self._answer_head()
        self._waiting: list[tuple[Connection, bytes]] = []

    def add(self, connection: Connection, row: bytes) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        self._waiting.append((connection, row))

    def _run(self) -> None:
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        values = memoryview(self._of(b"".join([row for _, row in batch]), len(batch))).cast("B")
        size = self._answer_bytes
        for at, (connection, _) in enumerate(batch):
            connection.answer(self._head + values[at * size : (at + 1) * size])

    def _of(self, rows: bytes, count: int) -> Any:
        array = np.frombuffer(rows, np.float32).reshape(count, *self._row)
        return self._session.run([self._out], {self._name: array})[0]

    def _fastest(self) -> tuple[int, int]:
        """The smallest batch that has nearly the best rate, and the bytes of an answer."""
        rates: dict[int, float] = {}
        answer = self._of(bytes(self.row_bytes), 1)
        for size in SIZES:
            rows = bytes(size * self.row_bytes)
            self._of(rows, size)
            took_s = []
            for _ in range(_TRIES):
                begun = time.perf_counter()
                self._of(rows, size)
                took_s.append(time.perf_counter() - begun)
            rates[size] = size / min(took_s)
        best = max(rates.values())
        return next(size for size in SIZES if rates[size] >= _NEARLY * best), answer.nbytes

    def _answer_head(self) -> bytes:
        size = self._answer_bytes
        output = {"name": self._out, "datatype": "FP32", "shape": [1, size // 4]}
        body = json.dumps({"outputs": [{**output, "parameters": {"binary_data_size": size}}]}).encode()
        fields = f"inference-header-content-length: {len(body)}\r\ncontent-length: {len(body) + size}\r\n\r\n"
        return b"HTTP/1.1 200 OK\r\n" + fields.encode() + body


class Connection(asyncio.Protocol):
    """One request after the other, each with one row at its end."""

    def __init__(self, bare: Bare) -> None:
        self._bare = bare
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._come = self._size = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._size:  # what is before the header's end is joined, what comes after it is collected
            data = b"".join([*self._pieces, data])
            self._pieces, self._come = [], 0
            if (end := data.find(_END)) >= 0:
                self._size = end + len(_END) + _content_length(data[: end + 2].lower())
        self._pieces.append(data)
        self._come += len(data)
        if self._size and self._come >= self._size:
            whole = data if len(self._pieces) == 1 else b"".join(self._pieces)
            row = whole[self._size - self._bare.row_bytes : self._size]
            self._pieces, self._come, self._size = [], 0, 0
            self._bare.add(self, row)

    def answer(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _content_length(head: bytes) -> int:
    begin = head.index(_LENGTH) + len(_LENGTH)
    return int(head[begin : head.index(b"\r", begin)])


async def _serve(model: str, port: int) -> None:
    bare = Bare(open_session(model, 1))
    server = await asyncio.get_running_loop().create_server(lambda: Connection(bare), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", required=True, type=int)
    chosen = parser.parse_args()
    uvloop.run(_serve(chosen.model, chosen.port))


if __name__ == "__main__":
    main()
