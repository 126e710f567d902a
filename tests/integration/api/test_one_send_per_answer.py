"""An answer's header and body leave in one send; a stream's header does not wait for its body."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from infaas_controller.api.http_transport import JOIN_BYTES, JoiningTransport
from serving import Serving


class Recorder:
    """The real transport's place."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str) -> str:
        return f"extra {name}"


def a_transport() -> tuple[Any, Recorder]:
    recorder = Recorder()
    transport: Any = recorder
    return JoiningTransport(transport, asyncio.get_running_loop(), lambda: False), recorder


async def test_two_writes_of_one_iteration_leave_as_one() -> None:
    transport, recorder = a_transport()
    transport.write(b"head")
    transport.write(b"body")
    assert recorder.writes == [b"headbody"]
    await asyncio.sleep(0)
    assert recorder.writes == [b"headbody"]


async def test_a_header_alone_leaves_when_the_loop_comes_round() -> None:
    transport, recorder = a_transport()
    transport.write(b"head")
    assert recorder.writes == []
    await asyncio.sleep(0)
    assert recorder.writes == [b"head"]


async def test_closing_lets_what_is_held_go_first_and_large_bodies_are_not_copied() -> None:
    transport, recorder = a_transport()
    transport.write(b"head")
    transport.close()
    assert (recorder.writes, recorder.closed) == ([b"head"], True)
    assert transport.get_extra_info("ssl") == "extra ssl"
    transport, recorder = a_transport()
    large = bytes(JOIN_BYTES + 1)
    transport.write(b"head")
    transport.write(large)
    assert recorder.writes[1] is large


async def test_a_real_answer_arrives_whole_in_one_read(edges: Serving) -> None:
    inputs = [{"name": n, "shape": [1, 16], "datatype": "INT32", "data": [1] * 16} for n in ("INPUT0", "INPUT1")]
    body = json.dumps({"inputs": inputs}).encode()
    host, port = edges.http.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = f"POST /v2/models/simple/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    writer.write(request + body)
    whole = await asyncio.wait_for(reader.read(65536), 10)
    head, _, rest = whole.partition(b"\r\n\r\n")
    assert f"content-length: {len(rest)}".encode() in head
    writer.close()
