"""Summing up a run, set by set, and what the generator's own share in the figures makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infaas.bench.journal import Journal
from infaas.bench.mixes import read_sets
from infaas.bench.reply import HUNG, OK, Reply
from infaas.bench.report import ALL, Facts, answering_s, set_reports
from infaas.bench.verdict import Generator, findings

QUIET = Generator(cpu_share=0.2, lag_p99_s=0.0001, lag_max_s=0.001)


def facts(journal: Journal, **changes: object) -> Facts:
    plain = Facts(journal.codes, journal.variants, {"v1": 2.0, "v2": 4.0}, 5, lambda mix: None)
    return replace(plain, **changes)  # type: ignore[arg-type]


def answered(variant: str, **more: str) -> Reply:
    return Reply(OK, False, {"x-infaas-variant": variant, **more}, b"")


def test_latency_counts_from_the_moment_a_query_was_due_not_from_when_it_left() -> None:
    journal = Journal()
    for number in range(10):
        journal.add(number, 0, due_s=1.0, sent_s=3.0, ended_s=3.5, reply=answered("v1"))
    ((report,), total) = set_reports(journal.columns(), read_sets(["latency=1000"]), facts(journal))
    assert report.latency_ms[0].value == pytest.approx(2_500.0)
    assert report.max_ms == pytest.approx(2_500.0)
    assert report.on_time == 0
    assert total is None


def test_each_set_is_summed_up_alone_and_all_together() -> None:
    journal = Journal()
    sets = read_sets(["latency=100,name=fast:weight=2", "accuracy=0.9,name=good"])
    journal.add(0, 0, 0.0, 0.0, 0.05, answered("v1", **{"x-infaas-cold-start": "true"}))
    journal.add(1, 0, 0.0, 0.0, 0.15, answered("v2", **{"x-infaas-fallback": "too busy"}))
    journal.add(2, 0, 0.0, 0.0, 0.01, Reply("saturated"))
    journal.add(3, 1, 0.0, 0.0, 9.0, Reply(HUNG))
    (fast, good), total = set_reports(journal.columns(), sets, facts(journal))
    assert (fast.sent, fast.answered, fast.on_time, fast.fallbacks, fast.cold_starts) == (3, 2, 1, 1, 1)
    assert fast.codes == {"ok": 2, "saturated": 1}
    assert fast.variants == {"v1": 1, "v2": 1}
    assert fast.cost_usd == pytest.approx((2.0 + 4.0) * 5 / 1_000)
    assert fast.cost_usd_per_1k == pytest.approx(3.0)
    assert fast.deadline_ms == 100.0
    assert fast.requirements == {"x-infaas-slo-latency-ms": "100"}
    assert (good.sent, good.answered, good.on_time, good.max_ms, good.cost_usd_per_1k) == (1, 0, None, None, None)
    assert total is not None
    assert (total.name, total.sent, total.answered, total.on_time) == (ALL, 4, 2, None)


def test_throughput_counts_until_the_last_good_answer_not_until_the_last_caller_gave_up() -> None:
    journal = Journal()
    sets = read_sets(["name=one", "name=other"])
    journal.add(0, 0, 0.0, 0.0, 0.5, answered("v1"))
    journal.add(1, 1, 1.0, 1.0, 2.0, answered("v1"))
    journal.add(2, 0, 1.5, 1.5, 2.5, Reply("saturated"))
    journal.add(3, 0, 2.0, 2.0, 62.0, Reply(HUNG))
    (one, other), total = set_reports(journal.columns(), sets, facts(journal))
    assert answering_s(journal.columns(), journal.codes) == 2.0
    assert total is not None
    assert (one.throughput, other.throughput, total.throughput) == (0.5, 0.5, 1.0)


def test_what_was_on_time_is_told_of_all_where_every_set_has_a_deadline() -> None:
    journal = Journal()
    journal.add(0, 0, 0.0, 0.0, 0.05, answered("v1"))
    journal.add(1, 1, 0.0, 0.0, 0.05, answered("v1"))
    _, total = set_reports(journal.columns(), read_sets(["latency=10", "latency=100"]), facts(journal))
    assert total is not None
    assert total.on_time == 1


def test_an_answer_of_a_variant_without_a_price_has_no_cost() -> None:
    journal = Journal()
    journal.add(0, 0, 0.0, 0.0, 0.05, answered("unknown"))
    (report,), _ = set_reports(journal.columns(), read_sets(()), facts(journal))
    assert report.cost_usd is None


def test_a_run_without_queries_has_a_report_of_nothing() -> None:
    journal = Journal()
    (report,), _ = set_reports(journal.columns(), read_sets(()), facts(journal))
    assert (report.sent, report.answered, report.throughput, report.codes) == (0, 0, 0.0, {})
    assert journal.columns().number.dtype == np.int64


def test_a_generator_that_had_time_enough_gives_no_reason_for_doubt() -> None:
    assert findings(QUIET, is_open=True, p50_s=0.005, is_stopped=False) == ()


@pytest.mark.parametrize(
    ("own", "is_open", "word"),
    [
        (replace(QUIET, cpu_share=0.95), False, "throughput is the generator's"),
        (replace(QUIET, late_share=0.02, late_p99_s=0.004), True, "worse than they are"),
        (replace(QUIET, lag_p99_s=0.05), False, "generator's own delays"),
        (replace(QUIET, lag_p99_s=0.003), False, "upper percentiles"),
        (replace(QUIET, waited_for_connection=3, most_connections=8), True, "not open"),
    ],
)
def test_a_generator_that_was_the_bound_says_which_figures_not_to_trust(
    own: Generator, is_open: bool, word: str
) -> None:
    (found,) = findings(own, is_open=is_open, p50_s=0.005, is_stopped=False)
    assert word in found.distrust


def test_a_closed_loop_is_never_late() -> None:
    assert findings(replace(QUIET, late_share=1.0), is_open=False, p50_s=None, is_stopped=False) == ()


def test_a_run_that_was_ended_says_so() -> None:
    (found,) = findings(QUIET, is_open=True, p50_s=None, is_stopped=True)
    assert "before its time" in found.what


def test_a_query_takes_few_bytes_of_the_journal_and_comes_back_as_it_was() -> None:
    journal = Journal()
    marks = {"x-infaas-cold-start": "true", "x-infaas-fallback": "busy"}
    journal.add(2**40, 3, 1.0, 1.5, 2.25, answered("v1", **marks))
    journal.add(7, 0, 0.0, 0.0, 0.5, Reply("saturated"))
    columns = journal.columns()
    assert len(journal) == 2
    assert (columns.number.tolist(), columns.mix.tolist()) == ([2**40, 7], [3, 0])
    assert (columns.due_s.tolist(), columns.sent_s.tolist()) == ([1.0, 0.0], [1.5, 0.0])
    assert columns.ended_s.tolist() == [2.25, 0.5]
    assert [journal.codes[n] for n in columns.code] == [OK, "saturated"]
    assert [journal.variants[n] for n in columns.variant] == ["v1", ""]
    assert (columns.is_cold.tolist(), columns.is_fallback.tolist()) == ([True, False], [True, False])
