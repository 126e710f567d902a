"""What a query over a pool of connections is told when the other end goes away."""

from __future__ import annotations

import asyncio

import pytest

from infaas.bench.reply import OK
from infaas.bench.rest import NeverAnsweredError, RestPool

QUERY = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize("answers", [0, 1])
async def test_a_connection_that_ends_says_whether_it_ever_carried_an_answer(answers: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(answers):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = RestPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for _ in range(answers):
        assert (await pool.ask(QUERY)).code == OK
    with pytest.raises(ConnectionResetError) as error:
        await pool.ask(QUERY)
    assert isinstance(error.value, NeverAnsweredError) == (answers == 0)
    pool.close()
    server.close()
    await server.wait_closed()
