"""The pure parts of the data-plane benchmark: statistics, schedule, table, and what it reads off the wire."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from infaas.oip.v2 import grpc_service_pb2 as oip

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Benchmarks are no distribution: they are imported from their folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from dataplane import figures, graphs, h2, offline, tables, wire
    from dataplane.questions import flame

    return SimpleNamespace(
        figures=figures, flame=flame, graphs=graphs, h2=h2, offline=offline, tables=tables, wire=wire
    )


def a_round(parts: Any, rate: float, **more: Any) -> Any:
    facts = {
        "programs_cpu_s": {"a": 0.75, "b": 0.25},
        "generator_share": 0.2,
        "answered": 1_000,
        "failed": 0,
        "p50_s": 0.001,
        "p95_s": 0.002,
    }
    return parts.figures.Round(rate=rate, **{**facts, **more})


def test_throughput_is_the_median_of_rounds_and_the_generator_s_worst(parts: Any) -> None:
    rounds = [a_round(parts, 90.0, generator_share=0.95), a_round(parts, 100.0, failed=2), a_round(parts, 400.0)]
    found = parts.figures.throughput(rounds)
    assert (found.rate, found.lowest, found.highest) == (100.0, 90.0, 400.0)
    assert found.cpu_per_query_s == pytest.approx(0.001)
    assert found.programs_cpu_per_query_s == pytest.approx({"a": 0.00075, "b": 0.00025})
    assert parts.tables.parts(found.programs_cpu_per_query_s, 0.0005) == "a 750"
    assert (found.generator_share, found.failed, found.rounds) == (0.95, 2, 3)


def test_a_ratio_is_the_median_of_the_rounds_own_ratios(parts: Any) -> None:
    assert parts.figures.ratio([10.0, 5.0, 30.0], [5.0, 5.0, 10.0]) == pytest.approx(2.0)
    assert parts.figures.ratio([10.0], []) is None


@pytest.mark.parametrize(
    ("rate", "share", "null", "said"),
    [
        (10.0, 0.5, 100.0, ""),
        (10.0, 0.95, 100.0, "generator-bound (95% of its core)"),
        (60.0, 0.4, 100.0, "generator-bound (null server 100/s)"),
        (50.0, 0.6, 100.0, ""),
        (60.0, 0.6, 200.0, ""),
        (60.0, 0.6, None, "generator-bound? (60% of its core)"),
        (60.0, 0.5, None, ""),
    ],
)
def test_a_generator_that_may_have_been_the_bound_is_said(
    parts: Any, rate: float, share: float, null: float | None, said: str
) -> None:
    assert parts.figures.why_bound(rate, share, null) == said


def test_what_became_of_an_overload_counts_by_when_queries_were_due(parts: Any) -> None:
    due = np.array([0.5, 1.0, 1.1, 1.2, 1.3, 1.4, 2.5])
    sent = np.array([0.5, 1.0, 1.1, 1.25, 0.0, 1.4, 2.5])
    ended = np.array([0.55, 1.05, 1.4, 1.26, 0.0, 0.0, 2.55])
    statuses = np.array([200, 200, 200, 429, 0, -1, 200], dtype=np.int16)
    reasons, stated = np.array([0, 0, 0, 1, 0, 0, 0], dtype=np.int16), np.array([0, 0, 0, 0.004, 0, 0, 0.0])
    refusals = parts.figures.Refusals(reasons, ["", "deadline-unreachable"], stated)
    found = parts.figures.overload(due, sent, ended, statuses, refusals, parts.figures.Phase(1.0, 2.0), 0.1)
    assert (found.offered, found.on_time, found.late, found.refused, found.unsent, found.unanswered) == (
        5,
        1,
        1,
        1,
        1,
        1,
    )
    assert found.on_time_per_s == pytest.approx(1.0)
    assert found.refused_p95_s == pytest.approx(0.01)
    assert found.stated_p95_s == pytest.approx(0.004)
    assert found.refused_by == {"deadline-unreachable": 1}
    assert found.admitted_p99_s == pytest.approx(0.3, abs=0.01)
    assert found.statuses == {200: 2, 429: 1, 0: 1, -1: 1}
    assert found.normal_after_s == 0.0


@pytest.mark.parametrize(
    ("bad", "after_s"), [((), 0.0), ((0.1,), 0.25), ((0.1, 0.6), 0.75), ((0.1, 0.9), float("inf"))]
)
def test_normal_begins_where_the_last_bad_quarter_of_a_second_ends(
    parts: Any, bad: tuple[float, ...], after_s: float
) -> None:
    due = np.array([5.0, 10.1, 10.3, 10.6, 10.9])
    is_on_time = np.array([False, *(not np.isclose(at - 10, bad).any() for at in due[1:])])
    assert parts.figures.normal_after(due, is_on_time, 10.0) == after_s


def test_a_schedule_has_its_two_rates_one_after_the_other(parts: Any) -> None:
    needed = parts.figures.gaps_needed(1_000.0, 2.0, 100.0, 3.0)
    gaps = np.random.default_rng(3).exponential(size=needed)
    at = parts.figures.two_steps(gaps, rate=1_000.0, seconds=2.0, later_rate=100.0, later_seconds=3.0)
    assert np.all(np.diff(at) > 0)
    assert at[-1] < 5.0
    assert np.sum(at < 2.0) == pytest.approx(2_000, rel=0.1)
    assert np.sum(at >= 2.0) == pytest.approx(300, rel=0.25)


def test_a_table_is_as_wide_as_its_cells(parts: Any) -> None:
    assert parts.tables.table(("a", "bee"), [("long", "1")]) == "| a    | bee |\n|------|----:|\n| long |   1 |"
    assert parts.tables.milliseconds(float("nan")) == "–"
    assert parts.tables.seconds(float("inf")) == "not within the run"


@pytest.mark.parametrize("name", ["content-length", "Content-Length"])
def test_an_answer_s_length_is_read_once_its_header_is_whole(parts: Any, name: str) -> None:
    answer = f"HTTP/1.1 200 OK\r\ninference-header-content-length: 3\r\n{name}: 5\r\nserver: s\r\n\r\nabcde".encode()
    assert parts.wire.answer_length(answer[:-6]) is None
    assert parts.wire.answer_length(answer[:-2]) == len(answer)
    with pytest.raises(parts.wire.ForeignAnswerError):
        parts.wire.answer_length(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


def an_answer(values: np.ndarray[Any, Any], *, is_binary: bool) -> bytes:
    output: dict[str, Any] = {"name": "y", "datatype": "FP32", "shape": list(values.shape)}
    raw = values.tobytes() if is_binary else b""
    output |= {"parameters": {"binary_data_size": len(raw)}} if is_binary else {"data": values.ravel().tolist()}
    body = json.dumps({"outputs": [output]}).encode() + raw
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def test_a_refusal_is_told_by_the_server_s_word_or_its_status(parts: Any) -> None:
    refused = (
        b"HTTP/1.1 429 No\r\nX-Infaas-Dropped-Reason: saturated\r\nServer-Timing: queue;dur=1, total;dur=2.5\r\n\r\n"
    )
    assert parts.wire.refusal_of(refused) == ("saturated", 0.0025)
    assert parts.wire.refusal_of(b"HTTP/1.1 503 No\r\n\r\n") == ("", -1.0)
    words, stated = ["", "saturated"], np.array([-1.0, -1.0, 0.0025])
    refusals = parts.figures.Refusals(np.array([0, 0, 1], dtype=np.int16), words, stated)
    at, statuses = np.zeros(3), np.array([503, 503, 429], dtype=np.int16)
    found = parts.figures.overload(at, at, at, statuses, refusals, parts.figures.Phase(0.0, 1.0), 0.1)
    assert (found.refused_by, found.stated_p95_s) == ({"status 503": 2, "saturated": 1}, pytest.approx(0.0025))


@pytest.mark.parametrize("is_binary", [True, False])
def test_a_wrong_answer_is_seen_however_it_travelled(parts: Any, is_binary: bool) -> None:
    right = np.arange(20, dtype=np.float32).reshape(2, 10)
    kept = [parts.wire.Kept(n, an_answer(right[n : n + 1], is_binary=is_binary)) for n in (0, 1)]
    assert parts.wire.wrong(kept, right) == []
    swapped = [parts.wire.Kept(0, kept[1].content), parts.wire.Kept(1, b"HTTP/1.1 200 OK\r\n\r\nnothing")]
    assert len(parts.wire.wrong(swapped, right)) == 2


def test_a_wrong_grpc_answer_is_seen(parts: Any) -> None:
    right = np.arange(20, dtype=np.float32).reshape(2, 10)
    message = oip.ModelInferResponse(raw_output_contents=[right[1].tobytes()]).SerializeToString()
    read = parts.wire.grpc_output
    assert parts.wire.wrong([parts.wire.Kept(1, message)], right, read) == []
    assert len(parts.wire.wrong([parts.wire.Kept(0, message), parts.wire.Kept(0, b"\xff")], right, read)) == 2


def test_http2_fields_are_literals_of_any_length(parts: Any) -> None:
    value = "v" * 300
    block = parts.h2.fields_block({"te": "trailers", "x": value})
    assert block == b"\0\x02te\x08trailers" + b"\0\x01x" + bytes([127, 0x80 | (173 & 127), 1]) + value.encode()


def test_a_frame_states_its_size_kind_flags_and_stream(parts: Any) -> None:
    made = parts.h2.frame(0, 1, 7, b"x" * 70_000)
    assert made[:3] == (70_000).to_bytes(3, "big")
    assert struct.unpack(">BBI", made[3:9]) == (0, 1, 7)


def test_models_are_the_same_every_time_and_answer_their_own_labels(parts: Any, tmp_path: Path) -> None:
    model = parts.graphs.SMALL_MLP
    assert model.build() == model.build()
    prepared = parts.graphs.prepare(model, tmp_path)
    assert prepared.answers.shape == (model.questions, 10)
    with np.load(prepared.evaluation) as kept:
        assert Counter(kept["label"]) == Counter(prepared.answers.argmax(axis=1))


@pytest.mark.parametrize(("side", "width"), [(32, 8), (64, 16)])
def test_the_residual_net_is_a_graph_that_runs(parts: Any, tmp_path: Path, side: int, width: int) -> None:
    model = parts.graphs.Model("tiny", "", (3, side, side), lambda: parts.graphs.resnet(side, width), questions=2)
    assert np.isfinite(parts.graphs.prepare(model, tmp_path).answers).all()


def test_a_flame_graph_is_titled_by_what_it_shows(parts: Any) -> None:
    drawn = b'<svg><text id="title" x="50%">/home/me/py-spy record --pid 7</text><text id="details"> </text></svg>'
    assert parts.flame.titled(drawn, "controller") == (
        b'<svg><text id="title" x="50%">controller</text><text id="details"> </text></svg>'
    )


@pytest.mark.parametrize(
    ("rates", "batch"),
    [
        ({1: 990.0, 2: 1_000.0, 4: 985.0}, 1),
        ({1: 2_000.0, 16: 9_000.0, 32: 11_000.0}, 32),
        ({32: 980.0, 8: 1_000.0, 1: 500.0}, 8),
    ],
)
def test_the_batch_that_gains_something_is_the_smallest_near_the_best(
    parts: Any, rates: dict[int, float], batch: int
) -> None:
    assert parts.offline.Limit(rates, 0.001, 0.001, 0.001).gaining_batch == batch
