"""What a benchmark calls broken, on results made up for it: a bound that is not kept is said and is an exit status."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from infaas.testing.faults import CATALOGUE_LOCKED, REDIS_KILLED, WORKER_KILLED, WORKER_STOPPED, Fault, Result
from infaas.testing.load import HUNG, OK, Outcome, Shot

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
Load = Callable[[str], ModuleType]
FINE = Shot(1.0, 1.1, OK, 1)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Benchmarks are no package: they import each other from their folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def a_result(fault: Fault, *shots: Shot, was_shown: bool = True) -> Result:
    return Result(fault, Outcome(shots, deadline_s=2.0), 0.5, 1.0, was_shown)


def test_a_fault_that_nobody_felt_is_borne() -> None:
    assert a_result(WORKER_KILLED, FINE, FINE, was_shown=False).broken() == []


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (a_result(WORKER_KILLED, Shot(0.5, 0.6, "model-failed", 1), FINE), ["1 queries ended as model-failed"]),
        (a_result(WORKER_KILLED, Shot(0.5, 0.6, "no-worker", 1), FINE), ["1 queries ended as no-worker"]),
        (a_result(WORKER_STOPPED, Shot(0.5, 0.6, "deadline-passed", 1), FINE), []),
        (a_result(WORKER_STOPPED, Shot(0.5, 0.6, "model-failed", 1), FINE), ["1 queries ended as model-failed"]),
        (a_result(WORKER_STOPPED, FINE, Shot(2.0, 4.0, "no-worker", 1)), ["the last query was not answered"]),
        (
            a_result(WORKER_STOPPED, Shot(0.5, 7.5, HUNG, 1), FINE),
            ["1 callers waited more than a second past their deadline", "1 queries ended as hung"],
        ),
        (
            a_result(REDIS_KILLED, Shot(0.0, 3.5, OK, 1), FINE),
            ["1 callers waited more than a second past their deadline"],
        ),
        (a_result(CATALOGUE_LOCKED, FINE, was_shown=False), ["no controller said that the catalogue was away"]),
        (a_result(WORKER_KILLED), ["the last query was not answered"]),
    ],
)
def test_a_fault_that_callers_felt_is_told_promise_by_promise(result: Result, said: list[str]) -> None:
    assert result.broken() == said


def test_faults_are_chosen_by_words_and_a_word_that_fits_none_is_refused(load: Load) -> None:
    faults = load("faults")
    assert [fault.name for fault in faults.chosen("flushall, read-only")] == ["Redis: FLUSHALL", "Redis read-only"]
    assert len(faults.chosen(None)) == len(faults.faults.FAULTS)
    with pytest.raises(SystemExit, match="no fault has 'wroker'"):
        faults.chosen("worker,wroker")


def test_a_fault_that_cannot_be_done_here_says_why(load: Load) -> None:
    faults = load("faults")
    assert "SQLite" in faults.not_run(CATALOGUE_LOCKED, "postgresql://db/infaas", True)
    assert "mounted" in faults.not_run(faults.faults.CATALOGUE_FULL, None, False)
    assert faults.not_run(CATALOGUE_LOCKED, None, False) is None


def test_a_table_in_which_nothing_was_run_promises_nothing(load: Load) -> None:
    verdict = load("faults").verdict
    assert verdict([]) == ("nothing was run", 2)
    assert verdict([a_result(WORKER_KILLED, FINE)]) == ("1 faults borne as promised", 0)
    said, status = verdict([a_result(WORKER_KILLED, FINE), a_result(CATALOGUE_LOCKED, FINE, was_shown=False)])
    assert (status, said) == (1, f"broken: {CATALOGUE_LOCKED.name}: no controller said that the catalogue was away")


def test_what_was_measured_once_is_not_counted_as_agreement(load: Load) -> None:
    repeat = load("profile_repeat")
    found = {
        ("m", "ort-fp32-t1", 1): [0.0010, 0.00105],
        ("m", "ort-fp32-t1", 2): [0.0010, 0.0015],
        ("m", "ort-fp32-t1", 4): [0.0010],
        ("m", "ort-fp32-t1", 8): [0.000001, 0.000005],
    }
    rows = repeat.rows_of(found)
    assert [row.is_within for row in rows] == [True, False, None, True]
    assert not repeat.is_kept(rows)
    assert repeat.is_kept([rows[0], rows[2], rows[3]])
    assert not repeat.is_kept([rows[2]])


def test_a_slow_start_and_a_large_system_are_beyond_their_bounds(load: Load) -> None:
    footprint = load("footprint")
    assert footprint.broken_bounds([1.9, 2.2], 230e6) == []
    assert len(footprint.broken_bounds([1.9, 5.5], 401e6)) == 2


def test_a_million_is_whole_only_with_every_query_that_was_wanted(load: Load) -> None:
    million = load("million")
    whole = {"wanted": 5, "queries": 5, "served": 6, "taken_back": 1}
    assert million.Report(**whole).is_whole
    for wrong in ({"queries": 4}, {"served": 7}, {"served": 4}, {"unasked": 1}, {"lost": ["million-1"]}):
        assert not million.Report(**{**whole, **wrong}).is_whole
