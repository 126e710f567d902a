"""A book in shared memory: rows of several writers, read by all, that outlive who wrote them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from infaas_controller.tally import Tally
from prometheus_client import CollectorRegistry

from infaas.domain.ids import VariantName
from infaas.observe.book import OwnBook, sums
from infaas.observe.series import CountSeries, SpreadSeries
from infaas.processes.numbers import CHUNK_BYTES, NumbersFile, SharedBook

WIDE = CHUNK_BYTES // 8 // 3
"""Three rows of this width do not go into a chunk."""


@pytest.fixture
def files() -> Iterator[list[int]]:
    """As the master makes them: without a name, empty."""
    made = [os.memfd_create(f"seat-{number}") for number in range(3)]
    yield made
    for descriptor in made:
        os.close(descriptor)


def books(files: list[int]) -> list[SharedBook]:
    return [SharedBook(own, [other for other in files if other != own]) for own in files]


def test_every_process_reads_the_sum_of_what_all_counted(files: list[int]) -> None:
    first, second, third = books(files)
    first.cells("x", ("digits",), 2)[1] += 3
    second.cells("x", ("digits",), 2)[1] += 4
    second.cells("x", ("wine",), 2)[0] += 1
    second.cells("y", (), 1)[0] += 9
    for book in (first, second, third):
        assert sums(book.rows("x")) == {("digits",): [0, 7], ("wine",): [1, 0]}
        assert sums(book.rows("y")) == {(): [9]}
        assert sums(book.rows("z")) == {}


def test_who_comes_after_a_dead_process_goes_on_with_its_rows(files: list[int]) -> None:
    reader = books(files)[0]
    for life in range(1, 4):
        book = SharedBook(files[1], [files[0], files[2]])
        book.cells("x", ("digits",), 1)[0] += 1
        book.cells("x", (f"life-{life}",), 1)[0] += 1
        assert sums(reader.rows("x"))["digits",] == [life]
    assert len(sums(reader.rows("x"))) == 4


def test_a_row_that_was_half_written_when_its_process_died_was_never_there(files: list[int]) -> None:
    own = NumbersFile(files[0], is_own=True)
    own.cells("x", ("a",), 1)[0] = 1
    length = os.fstat(files[0]).st_size
    with os.fdopen(os.dup(files[0]), "r+b") as raw:
        raw.seek(16 + 8 + 32 + 8)  # behind the first row: a key's length that nobody has said is part of the file
        raw.write(b"\x05\x00\x00\x00\x07\x00\x00\x00garbage and more of it")
    successor = NumbersFile(files[0], is_own=True)
    assert dict(successor.rows("x")).keys() == {("a",)}
    successor.cells("x", ("b",), 2)[1] += 5
    assert {values: list(cells) for values, cells in NumbersFile(files[0], is_own=False).rows("x")} == {
        ("a",): [1.0],
        ("b",): [0.0, 5.0],
    }
    assert os.fstat(files[0]).st_size == length


def test_rows_go_on_in_further_chunks_and_stay_where_they_are(files: list[int]) -> None:
    first, second, _ = books(files)
    kept = first.cells("x", ("0",), WIDE)
    for number in range(10):
        first.cells("x", (str(number),), WIDE)[0] += 1
    kept[0] += 1
    found = sums(second.rows("x"))
    assert [found[str(number),][0] for number in range(10)] == [2, *[1] * 9]
    assert os.fstat(files[0]).st_size > 3 * CHUNK_BYTES
    again = SharedBook(files[0], files[1:])
    assert sums(again.rows("x")) == found
    again.cells("x", ("10",), WIDE)
    assert len(sums(second.rows("x"))) == 11


def test_a_row_keeps_its_width_and_must_fit_a_chunk(files: list[int]) -> None:
    book = books(files)[0]
    book.cells("x", (), 2)
    with pytest.raises(ValueError, match="'x' has rows of 2 numbers, not 3"):
        book.cells("x", (), 3)
    with pytest.raises(ValueError, match="more than a chunk has"):
        book.cells("y", (), CHUNK_BYTES)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["a", "ä", 'b"', "c" * 300]), st.integers(1, 9)), max_size=60)
)
@settings(deadline=None)
def test_shared_or_not_a_book_says_the_same(counted: list[tuple[int, str, int]]) -> None:
    files = [os.memfd_create(f"seat-{number}") for number in range(3)]
    try:
        shared, alone = books(files), OwnBook()
        for who, label, amount in counted:
            shared[who].cells("x", (label,), 1)[0] += amount
            alone.cells("x", (label,), 1)[0] += amount
        for book in shared:
            assert sums(book.rows("x")) == sums(alone.rows("x"))
    finally:
        for descriptor in files:
            os.close(descriptor)


def test_a_scrape_of_any_process_shows_counters_and_histograms_of_all(files: list[int]) -> None:
    registries = [CollectorRegistry() for _ in files]
    for registry, book in zip(registries, books(files), strict=True):
        CountSeries(registry, "x_total", "what", ["model"], book=book).of("digits").inc(2)
        SpreadSeries(registry, "y", "what", [], (0.1, 1.0), book=book).of().observe(0.5, 3)
    for registry in registries:
        assert registry.get_sample_value("x_total", {"model": "digits"}) == 6
        assert registry.get_sample_value("y_bucket", {"le": "0.1"}) == 0
        assert registry.get_sample_value("y_bucket", {"le": "1.0"}) == 9
        assert registry.get_sample_value("y_count") == 9
        assert registry.get_sample_value("y_sum") == 4.5


def test_statistics_per_variant_are_of_all_processes_and_the_last_inference_is_the_latest(files: list[int]) -> None:
    tallies = [Tally(book) for book in books(files)]
    cheap = VariantName("cheap")
    for wall, tally in zip((5.0, 9.0, 7.0), tallies, strict=True):
        tally.batch_ran(cheap, 4, 0.5)
        tally.of(cheap).answered(4, 0.1, 0.5, 0.6, wall)
        tally.of(cheap).failed(1.0)
    tallies[0].batch_ran(cheap, 2, 0.25)
    for tally in tallies:
        stats = tally.snapshot()[cheap]
        assert (stats.inference_count, stats.execution_count, stats.success_count, stats.fail_count) == (12, 4, 3, 3)
        assert (stats.run_s, stats.last_inference_at) == (pytest.approx(1.5), 9.0)
        assert stats.batches == {4: (3, 1.5), 2: (1, 0.25)}
    tallies[0].forget_but(())
    tallies[0].of(cheap).failed(1.0)
    assert tallies[1].snapshot()[cheap].fail_count == 3, "it began anew; the others go on until they know, too"
    for tally in tallies:
        tally.forget_but(())
    assert [tally.snapshot() for tally in tallies] == [{}] * 3


def test_variants_that_come_and_go_for_ever_leave_nothing_behind(files: list[int]) -> None:
    shared, alone = [Tally(book) for book in books(files)], Tally()
    sizes: set[int] = set()
    for number in range(300):
        name = VariantName(f"digits.v{number % 100 + 100}.ort-fp32-t1")
        for tally in (*shared, alone):
            for items in range(1, 33):
                tally.batch_ran(name, items, 0.5)
            tally.of(name).answered(4, 0.1, 0.5, 0.6, 1.0)
        assert {*shared[number % 3].snapshot()} == {*alone.snapshot()} == {name}
        assert shared[0].snapshot()[name].batches == dict.fromkeys(range(1, 33), (3, 1.5))
        for tally in (*shared, alone):
            tally.forget_but(())
        sizes |= {os.fstat(file).st_size for file in files}
    assert sizes == {CHUNK_BYTES}


def test_who_comes_after_a_dead_process_finds_the_places_that_it_freed(files: list[int]) -> None:
    reader = books(files)[1]
    first = SharedBook(files[0], files[1:])
    for label in "abc":
        first.cells("x", (label,), 1)[0] = ord(label)
    assert len(sums(reader.rows("x"))) == 3
    first.forget("x", lambda values: values == ("b",))
    assert sums(reader.rows("x")) == {("b",): [98]}
    successor = SharedBook(files[0], files[1:])
    used = os.pread(files[0], 8, 0)
    successor.cells("x", ("d",), 1)[0] += 1
    successor.cells("x", ("e",), 1)[0] += 2
    assert os.pread(files[0], 8, 0) == used, "in the places of a and c"
    assert sums(reader.rows("x")) == {("b",): [98], ("d",): [1], ("e",): [2]}
    successor.cells("x", ("f",), 1)
    assert os.pread(files[0], 8, 0) != used
    assert len(sums(reader.rows("x"))) == 4


def test_a_row_whose_process_died_while_it_gave_it_a_new_name_is_not_read_and_its_place_is_free(
    files: list[int],
) -> None:
    first = SharedBook(files[0], files[1:])
    first.cells("x", ("a",), 1)[0] += 1
    first.cells("x", ("b",), 1)[0] += 1
    first.forget("x", lambda values: values == ("b",))
    os.pwrite(files[0], b'["x", "ne', 16 + 8)
    reader = books(files)[1]
    successor = SharedBook(files[0], files[1:])
    assert sums(reader.rows("x")) == sums(successor.rows("x")) == {("b",): [1]}
    successor.cells("x", ("c",), 1)[0] += 5
    assert sums(reader.rows("x")) == {("b",): [1], ("c",): [5]}


def test_names_that_change_while_they_are_read_are_never_seen_in_halves(files: list[int]) -> None:
    first, reader, _ = books(files)
    names = {(letter * length,) for letter in "abcd" for length in (1, 12)}
    seen: set[tuple[str, ...]] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.update(values for values, _ in reader.rows("x"))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for number in range(2_000):
                for name in names:
                    first.cells("x", name, 1)[0] += 1
                first.forget("x", lambda values, number=number: len(values[0]) % 2 == number % 2)  # type: ignore[misc]
        finally:
            over.set()
            sys.setswitchinterval(before)
        reading.result()
    assert seen <= names
    assert sums(reader.rows("x")).keys() == sums(first.rows("x")).keys()


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("abcdefgh"), st.booleans()), max_size=80))
@settings(deadline=None)
def test_whatever_is_forgotten_and_counted_anew_every_reader_sees_what_is_there(
    steps: list[tuple[int, str, bool]],
) -> None:
    files = [os.memfd_create(f"seat-{number}") for number in range(3)]
    try:
        shared, alone = books(files), [OwnBook(), OwnBook()]
        for who, label, is_forgotten in steps:
            for book in (shared[who], alone[who]):
                if is_forgotten:
                    book.forget("x", lambda values, label=label: values != (label,))  # type: ignore[misc]
                else:
                    book.cells("x", (label,), len(label))[0] += 1
            expected = sums([row for book in alone for row in book.rows("x")])
            assert [sums(book.rows("x")) for book in shared] == [expected] * 3
    finally:
        for descriptor in files:
            os.close(descriptor)
