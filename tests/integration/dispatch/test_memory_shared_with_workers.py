"""Large tensors between a dispatcher and a worker of its machine, and what of them is left in the memory they share."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from infaas_controller.ports import Answer

from infaas.control import SharedMemoryDocument
from infaas.domain.tensor import Datatype, Tensor
from infaas.processes.numbers import SharedBook
from infaas.testing.builders import a_variant, an_instance
from infaas.testing.fake_worker import FakeWorker

Opener = Callable[..., Any]


WIDE = 2**16
"""Numbers in an image that does not pass a socket where memory is shared."""


def image(value: int, width: int = WIDE) -> tuple[Tensor, ...]:
    return (Tensor("image", Datatype.FP32, (1, width), struct.pack("<f", value) * width),)


def value_of(answer: Answer) -> int:
    return int(struct.unpack_from("<f", bytes(answer.outputs[0].data))[0])


async def test_large_tensors_go_through_shared_memory_and_its_places_are_free_afterwards(
    cluster: Opener, tmp_path: Path
) -> None:
    worker = FakeWorker("w1", [an_instance("i1")], listen=f"unix:{tmp_path}/w", shared_memory_bytes=2**20)
    async with cluster([a_variant("v1")], [worker]) as c:
        await c.until(lambda: c.links.documents()[0].shared_memory.is_used)
        for turn in range(20):  # far more than the pools hold
            answer = await c.dispatcher.submit(c.query(inputs=image(turn)))
            assert bytes(answer.outputs[0].data) == bytes(image(turn)[0].data)
            del answer
        small = await c.dispatcher.submit(c.query(inputs=image(7, width=64)))
        assert value_of(small) == 7
        shared = c.links.documents()[0].shared_memory
        size = 4 * WIDE
        assert (shared.inputs, shared.input_bytes, shared.outputs, shared.output_bytes) == (
            20,
            20 * size,
            20,
            20 * size,
        )
        assert shared.without_room == 0


async def test_cancelled_and_late_queries_leave_nothing_in_shared_memory(cluster: Opener, tmp_path: Path) -> None:
    worker = FakeWorker("w1", [an_instance("i1")], listen=f"unix:{tmp_path}/w", shared_memory_bytes=2**20)
    async with cluster([a_variant("v1")], [worker]) as c:
        await c.until(lambda: c.links.documents()[0].shared_memory.is_used)
        for turn in range(10):
            worker.gate.clear()
            running = asyncio.ensure_future(c.dispatcher.submit(c.query(inputs=image(turn))))
            late = asyncio.ensure_future(c.dispatcher.submit(c.query(inputs=image(turn), latency_ms=60)))
            await c.until(lambda ran=turn: len(worker.ran) > ran)
            running.cancel()
            await asyncio.wait([running, late])
            worker.gate.set()
            await c.until(c.dispatcher.engine.ledger.is_settled)
        shared = c.links.documents()[0].shared_memory
        assert shared.inputs >= 10
        assert shared.without_room == 0


async def test_a_worker_that_comes_back_shares_new_memory(cluster: Opener, tmp_path: Path) -> None:
    worker = FakeWorker("w1", [an_instance("i1")], listen=f"unix:{tmp_path}/w", shared_memory_bytes=2**20)
    async with cluster([a_variant("v1")], [worker]) as c:
        await c.until(lambda: c.links.documents()[0].shared_memory.is_used)
        first = await c.dispatcher.submit(c.query(inputs=image(1)))
        await worker.kill()
        await c.until(lambda: not c.links.documents()[0].shared_memory.is_used)
        assert c.links.documents()[0].shared_memory.reason == "there is no connection"
        await worker.start()
        await c.until(lambda: c.links.documents()[0].shared_memory.is_used)
        second = await c.dispatcher.submit(c.query(inputs=image(2)))
        assert [value_of(first), value_of(second)] == [1, 2]
        assert c.links.documents()[0].shared_memory.inputs == 2


@pytest.fixture
def books() -> Iterator[tuple[SharedBook, SharedBook]]:
    """Of two processes of one controller."""
    files = [os.memfd_create(f"seat-{number}") for number in range(2)]
    yield SharedBook(files[0], files[1:]), SharedBook(files[1], files[:1])
    for descriptor in files:
        os.close(descriptor)


async def test_processes_of_one_controller_share_memory_each_for_itself_and_any_tells_of_all(
    cluster: Opener, books: tuple[SharedBook, SharedBook], tmp_path: Path
) -> None:
    worker = FakeWorker("w1", [an_instance("i1")], listen=f"unix:{tmp_path}/w", shared_memory_bytes=2**20)
    variants = [a_variant("v1")]
    async with cluster(variants, [worker], book=books[0]) as one, cluster(variants, [], book=books[1]) as two:
        await two.add(worker)
        await two.until_ready(worker)
        for c in (one, two):
            await c.until(lambda c=c: c.links.documents()[0].shared_memory.is_used)
            for turn in range(3):
                assert value_of(await c.dispatcher.submit(c.query(inputs=image(turn)))) == turn
        size = 6 * 4 * WIDE
        in_all = SharedMemoryDocument(True, "", 6, size, 6, size, 0)
        assert [c.links.documents()[0].shared_memory for c in (one, two)] == [in_all, in_all]


@pytest.mark.parametrize("cluster", ["inside"], indirect=True)
async def test_a_worker_within_the_process_needs_no_shared_memory(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")], shared_memory_bytes=2**20)
    async with cluster([a_variant("v1")], [worker]) as c:
        assert value_of(await c.dispatcher.submit(c.query(inputs=image(5)))) == 5
        shared = c.links.documents()[0].shared_memory
        assert (shared.is_used, shared.inputs, shared.outputs) == (False, 0, 0)
        assert shared.reason == "the worker is in the controller's process, where tensors are handed over as they are"


async def test_without_a_unix_socket_it_is_said_why_no_memory_is_shared(cluster: Opener) -> None:
    worker = FakeWorker("w1", [an_instance("i1")], shared_memory_bytes=2**20)
    async with cluster([a_variant("v1")], [worker]) as c:
        shared = c.links.documents()[0].shared_memory
        assert (shared.is_used, shared.reason) == (False, "the connection is not a unix socket")
