"""What benchmarks make of what they saw, on figures made up for it: slopes, verdicts, pictures, settings."""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest

from infaas.domain.query import Code, Priority
from infaas.observe.metrics import Metrics

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
Load = Callable[[str], ModuleType]
NAN = float("nan")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Benchmarks are no package: they import each other from their folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def rounds_of(soak: Any, memory: list[float], *, descriptors: int = 40, tasks: int | None = 20) -> list[Any]:
    """One round a minute; the last has those descriptors and tasks, the others 40 and 20."""
    last = len(memory) - 1
    return [
        soak.Round(
            60.0 * n,
            {"controller": soak.Sample(descriptors if n == last else 40, 8, int(size), tasks if n == last else 20)},
        )
        for n, size in enumerate(memory)
    ]


def test_a_slope_is_not_moved_by_single_rounds(load: Load) -> None:
    slope = load("soak").slope
    assert slope([0, 1, 2, 3, 4], [10, 12, 14, 16, 18]) == pytest.approx(2.0)
    assert slope([0, 1, 2, 3, 4, 5, 6], [10, 12, 900, 16, 18, 20, 0]) == pytest.approx(2.0)
    assert slope([1], [5]) == slope([], []) == 0.0


@pytest.mark.parametrize(
    ("memory", "more", "said"),
    [
        ([100e6] * 11, {}, []),
        ([100e6] * 5 + [400e6] + [100e6] * 5, {}, []),
        ([100e6 + n * 5e6 for n in range(11)], {}, ["controller: memory by 47.7 MiB in 600 s"]),
        ([100e6] * 11, {"descriptors": 44}, ["controller: descriptors 40 -> 44"]),
        ([100e6] * 11, {"descriptors": 43, "tasks": 24}, ["controller: tasks 20 -> 24"]),
        ([100e6] * 11, {"tasks": None}, []),
    ],
)
def test_what_grows_over_a_soak_is_said(load: Load, memory: list[float], more: Any, said: list[str]) -> None:
    soak = load("soak")
    rounds = rounds_of(soak, memory, **more)
    assert soak.grown(rounds, soak.memory_slopes(rounds)) == said


def test_a_soak_passes_only_with_nothing_wrong_held_or_grown(load: Load) -> None:
    soak = load("soak")
    assert soak.summary(soak.Report(queries=5, seconds=1.0))[-1] == "passed"
    for broken in ({"wrong": ["query 1"]}, {"held": {"infaas_in_flight": 1.0}}, {"left": ["controller: threads"]}):
        assert soak.summary(soak.Report(**broken))[-1] == "FAILED"


def test_a_soak_ends_by_the_clock_or_by_rounds(load: Load) -> None:
    length = load("soak").Length
    assert [length(600.0, None, 1).is_over(n, s) for n, s in ((1_000, 599.0), (1, 600.0))] == [False, True]
    assert [length(600.0, 10, 1).is_over(n, s) for n, s in ((9, 900.0), (10, 1.0))] == [False, True]


def test_what_wrk_says_is_read_and_errors_are_no_rate(load: Load) -> None:
    said = load("dataplane.wrk").said
    text = "  Latency Distribution\n     50%  890.00us\n     99%    2.10ms\nRequests/sec:  31415.92\n"
    assert said(text) == pytest.approx((31415.92, 0.00089))
    with pytest.raises(SystemExit, match="Non-2xx"):
        said(text + "  Non-2xx or 3xx responses: 7\n")
    with pytest.raises(SystemExit, match="unable to connect"):
        said("unable to connect to 127.0.0.1:1 Connection refused")


def test_an_edition_s_settings_are_variables_and_its_own_come_last(load: Load) -> None:
    own = load("dataplane.own")
    more = {"controller.processes": "2", "worker.inline": "false"}
    assert own.PLAIN.with_settings(more).environ() == {
        "INFAAS_CONTROLLER__PROCESSES": "2",
        "INFAAS_WORKER__INLINE": "false",
    }
    assert own.INLINE.with_settings(more).environ()["INFAAS_WORKER__INLINE"] == "true"


def test_queries_are_counted_however_they_ended(load: Load) -> None:
    counted = load("dataplane.own").queries_counted
    metrics = Metrics()
    assert counted(generate_latest(metrics.registry).decode()) == 0
    for code in (None, None, Code.SATURATED):
        metrics.observe_request(model="m1", code=code, priority=Priority.STANDARD, total_s=0.001, variant="v1")
    metrics.observe_batch("v1", 7)
    assert counted(generate_latest(metrics.registry).decode()) == 3


def test_settings_on_the_command_line_are_key_and_value(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    main = load("dataplane.command").main
    with pytest.raises(SystemExit):
        main(["peers", "--set", "worker.inline"])
    assert "'worker.inline' is not KEY=VALUE" in capsys.readouterr().err


def test_pictures_are_whole_and_name_what_they_show(load: Load) -> None:
    charts = load("dataplane.charts")
    drawn = {
        "bars": charts.bars("Rates", "answers/s", ["infaas", "other"], {"JSON": [3.0, None], "binary": [4.0, NAN]}),
        "stacks": charts.stacks("Costs", "µs", ["one"], {"controller": [1.0], "worker": [2.0]}),
        "lines": charts.lines("Goodput", "offered", "%", {"infaas": [(0.5, 50.0), (5.0, NAN)]}, top=110),
        "curves": charts.curves("Costs", "instances", "µs", {"alone": [(10, 5.0), (10_000, 9.0), (20_000, 0.0)]}),
        "nothing": charts.curves("Nothing", "x", "y", {}),
    }
    texts = {name: " ".join(ElementTree.fromstring(svg).itertext()) for name, svg in drawn.items()}
    assert "JSON" in texts["bars"]
    assert "worker" in texts["stacks"]
    assert "Goodput" in texts["lines"]
    assert all(word in texts["curves"] for word in ("10,000", "alone", "logarithmic"))


def test_a_gateway_s_share_of_latency_is_said_only_where_nobody_waits_for_others(load: Load) -> None:
    gateway, figures, offline = (load(f"dataplane.{name}") for name in ("questions.gateway", "figures", "offline"))
    one = figures.Throughput(
        rate=100.0, lowest=90.0, highest=110.0, cpu_per_query_s=150e-6,
        programs_cpu_per_query_s={"controller": 100e-6, "worker": 50e-6}, generator_share=0.1, p50_s=0.003,
        p95_s=0.004, failed=0, rounds=3,
    )  # fmt: skip
    limits = [offline.Limit({1: 500.0}, alone_s, alone_s, 30e-6) for alone_s in (0.001, 0.002, 0.009)]
    model = SimpleNamespace(name="m")
    row, data = gateway._row(model, ("infaas", "binary", 1), one, limits, 1_000.0)
    assert data["added_p50_s"] == pytest.approx(0.001)
    assert data["added_cpu_s"] == pytest.approx(120e-6)
    assert "controller 100 + worker 50" in row
    row, data = gateway._row(model, ("infaas", "binary", 32), one, limits, 150.0)
    assert row[6] == "–"
    assert data["bound"] == "generator-bound (null server 150/s)"
