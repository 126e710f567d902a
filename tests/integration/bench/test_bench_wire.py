"""What sends load, against real sockets: the order of answers, broken connections, patience, and both kinds of loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from infaas.bench.journal import Journal
from infaas.bench.kept import KeptAnswers
from infaas.bench.loops import Loops
from infaas.bench.mixes import read_sets
from infaas.bench.pacer import Pacer
from infaas.bench.queries import Rows
from infaas.bench.reply import BROKEN, HUNG, OK, UNFINISHED
from infaas.bench.rest import Connection, RestPool, query_bytes
from infaas.bench.run import Interrupted, Plan, bench

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 200 OK\r\nX-Infaas-Variant: v1\r\ncontent-length: %d\r\n\r\n%s"
REFUSAL = b'{"error": "too many", "code": "saturated", "retryable": true}'


def answer(content: bytes) -> bytes:
    return ANSWER % (len(content), content)


async def body_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
    return await reader.readexactly(length)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Every query's last byte comes back."""
    while True:
        writer.write(answer((await body_of(reader))[-1:]))


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    tasks: set[asyncio.Task[None]] = set()

    def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(_closing(serve, reader, writer)))

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()


async def _closing(serve: Serve, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Silence lasts until the caller leaves: an end of `serve` alone would be an answer of a kind."""
    try:
        await serve(reader, writer)
        await reader.read()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def query(value: int) -> bytes:
    return query_bytes("task", {"x": np.array([value], dtype=np.uint8)}, {})


async def connect(url: str) -> Connection:
    host, port = url.removeprefix("http://").split(":")
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, int(port))
    return connection


async def test_answers_on_one_connection_go_to_their_queries_in_order() -> None:
    async with serving(echo) as url:
        connection = await connect(url)
        replies = await asyncio.gather(*(connection.ask(query(n)) for n in range(50)))
        assert [reply.content for reply in replies] == [bytes([n]) for n in range(50)]
        assert {reply.fields["x-infaas-variant"] for reply in replies} == {"v1"}
        assert (connection.unasked, connection.waiting, connection.is_open) == (0, 0, True)
        connection.abort()


async def test_an_answer_that_nobody_asked_for_is_noticed_and_ends_the_connection() -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)
        writer.write(answer(b"1") + answer(b"2"))

    async with serving(twice) as url:
        connection = await connect(url)
        assert (await connection.ask(query(1))).content == b"1"
        assert (connection.unasked, connection.is_open) == (1, False)


async def test_a_refusal_comes_with_its_code_and_a_foreign_answer_with_its_status() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)
        writer.write(b"HTTP/1.1 429 Too Many\r\ncontent-length: %d\r\n\r\n%s" % (len(REFUSAL), REFUSAL))
        await body_of(reader)
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\nconnection: close\r\n\r\noops")

    async with serving(refuse) as url:
        pool = RestPool(url)
        first, second = await pool.ask(query(1)), await pool.ask(query(2))
        pool.close()
    assert (first.code, first.is_retryable) == ("saturated", True)
    assert (second.code, second.is_retryable) == ("foreign-answer-502", False)


async def test_a_pool_never_has_more_connections_than_allowed_and_says_who_waited() -> None:
    opened = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await echo(reader, writer)

    async with serving(counted) as url:
        pool = RestPool(url, most=3)
        replies = await asyncio.gather(*(pool.ask(query(n)) for n in range(40)))
        pool.close()
    assert [reply.content for reply in replies] == [bytes([n]) for n in range(40)]
    assert opened == 3
    assert pool.waited >= 37


async def test_a_query_that_is_taken_back_gives_its_connection_up_and_its_place_to_the_next() -> None:
    arrived, came = asyncio.Event(), 0

    async def first_hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        if came == 1:
            await body_of(reader)
            arrived.set()
            return
        await echo(reader, writer)

    async with serving(first_hangs) as url:
        pool = RestPool(url, most=1)
        hanging = asyncio.create_task(pool.ask(query(1)))
        await arrived.wait()
        waiting = asyncio.create_task(pool.ask(query(2)))
        hanging.cancel()
        assert (await waiting).content == b"\x02"
        await asyncio.wait({hanging})
        assert hanging.cancelled()
        pool.close()


async def run_open(url: str, schedule: list[float], *, patience_s: float = 30.0, most: int = 64) -> Journal:
    pool, journal = RestPool(url, most=most), Journal(KeptAnswers(len(schedule)))
    loops = Loops(lambda number, mix: pool.ask(query(number)), journal, lambda: 0, patience_s=patience_s)
    await loops.open_loop(schedule)
    pool.close()
    return journal


async def test_an_open_loop_sends_on_schedule_whatever_became_of_the_queries_before() -> None:
    """The server answers nothing until all queries are there: callers who waited for each other would never end."""
    count, came, all_there = 20, 0, asyncio.Event()

    async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        body = await body_of(reader)
        came += 1
        if came == count:
            all_there.set()
        await all_there.wait()
        writer.write(answer(body[-1:]))

    async with serving(patient) as url:
        journal = await run_open(url, [n / 200 for n in range(count)])
    columns = journal.columns()
    assert sorted(columns.number) == list(range(count))
    assert journal.codes == [OK]
    assert all(columns.due_s <= columns.sent_s)
    assert all(columns.sent_s < columns.ended_s)
    assert columns.due_s[columns.number.argsort()].tolist() == [n / 200 for n in range(count)]
    assert journal.kept is not None
    assert {n: reply.content for n, reply in journal.kept.of(0).items()} == {n: bytes([n]) for n in range(count)}


async def test_who_gets_no_answer_has_hung_and_who_gets_no_connection_is_broken() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)

    async with serving(silent) as url:
        hung = await run_open(url, [0.0, 0.0], patience_s=0.1)
    broken = await run_open(url, [0.0, 0.0])  # nobody listens any more
    assert [hung.codes[n] for n in hung.columns().code] == [HUNG, HUNG]
    assert [broken.codes[n] for n in broken.columns().code] == [BROKEN, BROKEN]


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_run_that_is_stopped_records_every_query_that_was_sent(is_open: bool) -> None:
    arrived = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body_of(reader)
        arrived.set()

    async with serving(silent) as url:
        pool, journal = RestPool(url), Journal()
        loops = Loops(lambda number, mix: pool.ask(query(number)), journal, lambda: 0, patience_s=60.0)
        work = loops.open_loop([0.0, 3_600.0]) if is_open else loops.closed_loop(1, seconds=None, count=9)
        running = asyncio.create_task(work)
        await arrived.wait()
        loops.stop()
        await running
        pool.close()
    assert [journal.codes[n] for n in journal.columns().code] == [UNFINISHED]


async def test_a_closed_loop_has_as_many_queries_on_their_way_as_callers_and_ends_with_its_count() -> None:
    most = now = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most, now
        while True:
            body = await body_of(reader)
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1
            writer.write(answer(body[-1:]))

    async with serving(counted) as url:
        pool, journal = RestPool(url), Journal()
        loops = Loops(lambda number, mix: pool.ask(query(number % 200)), journal, lambda: 0, patience_s=30.0)
        await loops.closed_loop(4, seconds=None, count=300)
        pool.close()
    assert sorted(journal.columns().number) == list(range(300))
    assert journal.codes == [OK]
    assert most <= 4


async def test_what_breaks_the_sender_itself_ends_the_run_with_its_error() -> None:
    async def ask(number: int, mix: int) -> None:
        raise ZeroDivisionError("a mistake of ours")

    loops = Loops(ask, Journal(), lambda: 0, patience_s=1.0)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        await loops.open_loop([0.0, 3_600.0])


async def test_the_pacer_never_wakes_early_and_serves_one_moment_after_another() -> None:
    loop = asyncio.get_running_loop()
    with Pacer() as pacer:
        for ahead_s in (0.01, 0.0, -1.0, 0.002):
            moment = loop.time() + ahead_s
            await pacer.until(moment)
            assert loop.time() >= moment
        late = asyncio.create_task(pacer.until(loop.time() + 3_600))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.wait({late})
        await pacer.until(loop.time() + 0.001)


def a_plan(url: str, **more: Any) -> Plan:
    return Plan("task", url, Rows({"x": np.zeros((4, 1), np.uint8)}, 1, {}), read_sets(()), **more)


async def test_a_stop_during_the_warm_up_ends_everything() -> None:
    asked = asyncio.Event()
    stops: list[Callable[[], None]] = []

    async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await echo(reader, writer)

    async with serving(told) as url:
        running = asyncio.create_task(bench(a_plan(url, warm_up_s=3_600.0, count=1), stops.append))
        await asked.wait()
        stops[0]()
        with pytest.raises(Interrupted):
            await running
    assert len(stops) == 1


async def test_a_schedule_with_all_queries_at_its_beginning_has_no_rate_and_a_report_all_the_same() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await body_of(reader)
            writer.write(b"HTTP/1.1 429 Too Many\r\ncontent-length: %d\r\n\r\n%s" % (len(REFUSAL), REFUSAL))

    async with serving(refuse) as url:
        report = await bench(a_plan(url, schedule=(0.0, 0.0)), lambda stop: None)
    assert report.offered is None
    assert report.sets[0].codes == {"saturated": 2}
    assert (report.answering_s, report.sets[0].throughput) == (0.0, 0.0)
    assert report.seconds > 0


async def test_the_server_sees_its_own_name_as_the_host() -> None:
    hosts: list[bytes] = []

    async def noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        hosts.extend(line for line in head.split(b"\r\n") if line.lower().startswith(b"host:"))
        length = int(head.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(answer(b"1"))

    async with serving(noted) as url:
        await bench(a_plan(url, count=1), lambda stop: None)
    assert hosts == [f"host: {url.removeprefix('http://')}".encode()]
