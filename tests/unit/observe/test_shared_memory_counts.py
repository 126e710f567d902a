"""What is counted of memory that is shared with workers, by one process or by several that are one controller."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from prometheus_client.exposition import generate_latest

from infaas.observe.book import Book, OwnBook
from infaas.observe.metrics import Metrics
from infaas.observe.shared_memory import SharedMemoryTally
from infaas.processes.numbers import SharedBook
from infaas.rpc.hop.traffic import Traffic, TrafficCounts


@pytest.fixture
def files() -> Iterator[list[int]]:
    made = [os.memfd_create(f"seat-{number}") for number in range(2)]
    yield made
    for descriptor in made:
        os.close(descriptor)


def scraped(book: Book) -> dict[str, float]:
    lines = generate_latest(Metrics(book=book).registry).decode().splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith("infaas_shared_memory"))
    return {name: float(value) for name, _, value in found}


def test_each_kind_of_payload_is_counted_for_itself() -> None:
    counts = TrafficCounts()
    counts.sent(100_000)
    counts.sent(50)
    counts.sent_without_room()
    counts.received(7)
    counts.received_without_room(2)
    assert counts.so_far() == Traffic(2, 100_050, 1, 1, 7, 2)


def test_a_scrape_shows_every_worker_with_which_memory_was_shared() -> None:
    book = OwnBook()
    assert scraped(book) == {}
    tally = SharedMemoryTally(book)
    tally.of("w1").sent(100_000)
    tally.of("w1").sent_without_room()
    tally.of("w1").received_without_room(2)
    tally.of("w2").received(300_000)
    assert scraped(book) == {
        'infaas_shared_memory_batches_total{direction="inputs",worker="w1"}': 1,
        'infaas_shared_memory_batches_total{direction="outputs",worker="w1"}': 0,
        'infaas_shared_memory_batches_total{direction="inputs",worker="w2"}': 0,
        'infaas_shared_memory_batches_total{direction="outputs",worker="w2"}': 1,
        'infaas_shared_memory_bytes_total{direction="inputs",worker="w1"}': 100_000,
        'infaas_shared_memory_bytes_total{direction="outputs",worker="w1"}': 0,
        'infaas_shared_memory_bytes_total{direction="inputs",worker="w2"}': 0,
        'infaas_shared_memory_bytes_total{direction="outputs",worker="w2"}': 300_000,
        'infaas_shared_memory_full_total{worker="w1"}': 3,
        'infaas_shared_memory_full_total{worker="w2"}': 0,
    }


def test_processes_of_one_controller_count_together_and_one_that_died_goes_on_counting(files: list[int]) -> None:
    first, second = SharedBook(files[0], files[1:]), SharedBook(files[1], files[:1])
    SharedMemoryTally(first).of("w1").sent(70_000)
    SharedMemoryTally(second).of("w1").sent(80_000)
    SharedMemoryTally(second).of("w2").received(90_000)
    both = {"w1": Traffic(2, 150_000), "w2": Traffic(received=1, received_bytes=90_000)}
    assert SharedMemoryTally(first).totals() == SharedMemoryTally(second).totals() == both
    assert scraped(first) == scraped(second)
    again = SharedBook(files[1], files[:1])  # the next process in its place
    SharedMemoryTally(again).of("w1").sent(1)
    assert SharedMemoryTally(first).totals()["w1"] == Traffic(3, 150_001)
