"""The one-slot publisher."""

from __future__ import annotations

import asyncio

from infaas.aio.latest import Latest


async def test_a_reader_gets_the_newest_and_only_once() -> None:
    latest: Latest[int] = Latest()
    for number in range(5):
        latest.put(number)
    assert await latest.get() == 4
    assert not latest.has_value


async def test_a_waiting_reader_is_woken() -> None:
    latest: Latest[str] = Latest()
    reader = asyncio.create_task(latest.get(), name="reader")
    await asyncio.sleep(0)
    latest.put("a")
    assert await asyncio.wait_for(reader, 10) == "a"


async def test_of_two_readers_each_gets_a_value() -> None:
    latest: Latest[int] = Latest()
    readers = [asyncio.create_task(latest.get(), name=f"reader-{n}") for n in range(2)]
    await asyncio.sleep(0)
    latest.put(1)
    await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    latest.put(2)
    assert sorted(await asyncio.gather(*readers)) == [1, 2]


async def test_a_cancelled_reader_takes_nothing() -> None:
    latest: Latest[None] = Latest()
    reader = asyncio.create_task(latest.get(), name="reader")
    await asyncio.sleep(0)
    latest.put(None)
    reader.cancel()
    await asyncio.wait([reader])
    assert latest.has_value
    assert await latest.get() is None
