"""A server that does nothing: every piece of bytes is a request and gets the same answer. It shows what the load
generator could drive; its answers are no answers, so nothing of it is checked."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import cast

import uvloop

_OUTPUT = {"name": "y", "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": 40}}
_HEAD = json.dumps({"model_name": "null", "model_version": "1", "outputs": [_OUTPUT]}).encode()
_FIELDS = f"inference-header-content-length: {len(_HEAD)}\r\ncontent-length: {len(_HEAD) + 40}\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\n" + _FIELDS.encode() + _HEAD + bytes(40)


class Nothing(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(ANSWER)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Nothing, "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="taken, and not looked at")
    parser.add_argument("--port", type=int, required=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
