"""A book in shared memory: rows of several writers, read by all, that outlive who wrote them."""

from __future__ import annotations

import os
from collections.abc import Iterator

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
        raw.seek(8 + 8 + 16 + 8)  # behind the first row: a key's length that nobody has said is part of the file
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
    assert tallies[1].snapshot()[cheap].fail_count == 4
