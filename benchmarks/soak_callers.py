"""Callers of a soak: most behave, some leave before their answer, some send what is none of the protocol."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections import Counter
from typing import Any

from own_system import SIMPLE_TASK as TASK

from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.up.record import Endpoints

CANCELLED, MALFORMED = 0.10, 0.01
REST_CONNECTIONS, GRPC_CALLS = 24, 4
GRPC_SHARE = 0.1
PATIENCE_S = 60.0
INPUT_BYTES = 64

_HEAD = json.dumps(
    {
        "inputs": [
            {"name": name, "shape": [1, 16], "datatype": "INT32", "parameters": {"binary_data_size": INPUT_BYTES}}
            for name in ("INPUT0", "INPUT1")
        ],
        "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}],
    }
).encode()
_LINE = (
    f"POST /v2/models/{TASK}/infer HTTP/1.1\r\nhost: soak\r\ninference-header-content-length: {len(_HEAD)}\r\n"
    f"content-length: {len(_HEAD) + 2 * INPUT_BYTES}\r\n\r\n"
).encode()
_ROW = struct.Struct("<16i")


def _malformed() -> list[tuple[bytes, int, bool]]:
    """What is sent, the status it must get, and whether the connection is over after it."""
    post = f"POST /v2/models/{TASK}/infer HTTP/1.1\r\nhost: soak\r\n"

    def of(body: bytes, *fields: str) -> bytes:
        head = "".join(f"{line}\r\n" for line in (*fields, f"content-length: {len(body)}"))
        return f"{post}{head}\r\n".encode() + body

    return [
        (of(b'{"inputs": ['), 400, False),
        (of(b"[" * 3_000), 400, False),
        (of(_HEAD + bytes(7), f"inference-header-content-length: {len(_HEAD)}"), 400, False),
        (of(_HEAD, "inference-header-content-length: 99999"), 400, False),
        (of(b"{}", "x-infaas-slo-latency-ms: nan"), 400, False),
        (of(b'{"inputs": []}', "x-infaas-latency: 1"), 400, False),
        (of(b"", "x-infaas-slo-accuracy-min: -1"), 400, False),
        (b"POST /v2/models/nothing/infer HTTP/1.1\r\nhost: soak\r\ncontent-length: 0\r\n\r\n", 404, False),
        (b"GARBAGE\r\n\r\n", 400, True),
        (f"{post}content-length: 5\r\ncontent-length: 6\r\n\r\nhello".encode(), 400, True),
        (f"{post}x-long: {'x' * 70_000}\r\n\r\n".encode(), 431, True),
    ]


_BAD = _malformed()


class Soak:
    """The callers of one round after another; everything that is drawn comes from one seed."""

    def __init__(self, endpoints: Endpoints, seed: int) -> None:
        self._endpoints = endpoints
        self._random = random.Random(seed)
        self._next = 0
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def round(self, call: Any, queries: int) -> None:
        """Every REST connection is closed at its end. `call` is the gRPC method, on the soak's one channel."""
        over_grpc = int(queries * GRPC_SHARE)
        async with asyncio.TaskGroup() as group:
            for share in _shares(queries - over_grpc, REST_CONNECTIONS):
                group.create_task(self._rest_caller(share), name="rest-caller")
            for share in _shares(over_grpc, GRPC_CALLS):
                group.create_task(self._grpc_caller(call, share), name="grpc-caller")

    def _kind(self) -> str:
        draw = self._random.random()
        if draw < CANCELLED:
            return "cancelled"
        return "malformed" if draw < CANCELLED + MALFORMED else "good"

    def _row(self) -> tuple[bytes, int]:
        """A row that no other query of this soak has, and its number."""
        self._next += 1
        return _ROW.pack(*range(self._next, self._next + 16)), self._next

    # REST

    async def _rest_caller(self, queries: int) -> None:
        stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for _ in range(queries):
            if stream is None:
                stream = await asyncio.open_connection(self._endpoints.host, self._endpoints.http_port)
            kind = self._kind()
            async with asyncio.timeout(PATIENCE_S):
                is_open = await getattr(self, f"_rest_{kind}")(*stream)
            self.outcomes[kind] += 1
            if not is_open:
                await _close(stream[1])
                stream = None
        if stream is not None:
            await _close(stream[1])

    async def _rest_good(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        row, number = self._row()
        writer.write(_LINE + _HEAD + row + row)
        status, fields, body = await _answer(reader)
        if status != 200:
            self.wrong.append(f"query {number}: {status} {body[:200]!r}")
        else:
            head = int(fields["inference-header-content-length"])
            self._compare(number, body[head:])
        return fields.get("connection") != "close"

    async def _rest_cancelled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Gone before the answer: at once, in the middle of the request, or a moment later."""
        row, _ = self._row()
        data = _LINE + _HEAD + row + row
        writer.write(data[: self._random.choice((len(_LINE) // 2, len(data) - 20, len(data)))])
        if self._random.random() < 0.5:
            await writer.drain()
            await asyncio.sleep(0)
        if self._random.random() < 0.3:
            writer.transport.abort()
        return False

    async def _rest_malformed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        data, right, ends = self._random.choice(_BAD)
        writer.write(data)
        status, fields, body = await _answer(reader)
        if status != right:
            self.wrong.append(f"{data[:60]!r}: {status} and not {right}: {body[:200]!r}")
        return not ends and fields.get("connection") != "close"

    # gRPC

    async def _grpc_caller(self, call: Any, queries: int) -> None:
        for _ in range(queries):
            kind = self._kind()
            row, number = self._row()
            message = pb.ModelInferRequest(model_name=TASK, raw_input_contents=[row, row])
            for name in ("INPUT0", "INPUT1"):
                message.inputs.add(name=name, datatype="INT32", shape=[1, 16])
            if kind == "malformed":
                message.inputs[0].shape[0] = -1
            data = message.SerializeToString()
            if kind == "malformed" and self._random.random() < 0.5:
                data = data[:-9]
            await self._grpc_one(call(data, timeout=PATIENCE_S), kind, number)
            self.outcomes[kind] += 1

    async def _grpc_one(self, call: Any, kind: str, number: int) -> None:
        if kind == "cancelled":
            for _ in range(self._random.choice((0, 3))):
                await asyncio.sleep(0)
            call.cancel()
        status = await call.code()
        right = {"cancelled": ("CANCELLED", "OK"), "malformed": ("INVALID_ARGUMENT",), "good": ("OK",)}[kind]
        if status.name not in right:
            self.wrong.append(f"gRPC query {number} ({kind}): {status.name} {await call.details()}")
        elif kind == "good":
            answer = pb.ModelInferResponse.FromString(await call)
            self._compare(number, answer.raw_output_contents[0])

    def _compare(self, number: int, data: bytes) -> None:
        got = _ROW.unpack(data[: _ROW.size]) if len(data) >= _ROW.size else ()
        if got != tuple(2 * value for value in range(number, number + 16)):
            self.wrong.append(f"query {number}: its answer is {got}")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    return int(lines[0].split()[1]), fields, await reader.readexactly(int(fields["content-length"]))


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        return  # the other side was first


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (1 if n < total % parts else 0) for n in range(parts)]
