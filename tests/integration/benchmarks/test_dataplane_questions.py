"""Questions of the data-plane benchmark asked of small real servers, so that what stands in their tables is seen soon.

INFaaS itself is not up here. The null server stands in for a REST server: with a model of a single question its one
answer is the right one.
"""

from __future__ import annotations

import importlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
PARTS = ("cells", "graphs", "native_load", "peers", "servers")
QUESTIONS = ("peers", "gateway", "batching", "overload")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = {name: importlib.import_module(f"dataplane.{name}") for name in PARTS}
    asked = {f"of_{name}": importlib.import_module(f"dataplane.questions.{name}") for name in QUESTIONS}
    return SimpleNamespace(**found, **asked)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of built programs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(parts: Any, cache: Path, tmp_path: Path) -> Any:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler here")
    kit = parts.peers.Kit(parts.servers.pins(is_shared=True), tmp_path, cache)
    effort = replace(parts.cells.QUICK, warm_s=0.05, seconds=0.2, offline_s=0.05, overload_s=0.4, calm_s=0.2)
    load = parts.native_load.NativeLoad(parts.native_load.built("load", cache))
    return parts.cells.Run(kit, effort, (), load, 0, {})


@pytest.fixture
def model(parts: Any) -> Any:
    return replace(parts.graphs.SMALL_MLP, questions=1)


@pytest.fixture
def beside_null(parts: Any, run: Any, model: Any) -> Iterator[Any]:
    """A REST server under test, and what the load is held against."""
    other = replace(run.kit, folder=run.kit.folder / "stand-in")
    other.folder.mkdir()
    with (
        parts.cells.started(run, model, (), ()) as up,
        parts.peers.peer("null", other, up.prepared) as server,
    ):
        yield replace(up, servers=[replace(server, name="stand-in")])


def test_many_connections_and_one_are_measured_over_every_protocol(parts: Any, run: Any, model: Any) -> None:
    with parts.cells.started(run, model, (), ("grpc",)) as up:
        made = parts.of_gateway._of_model(run, up)
    assert up.left_out == []
    (_, one), *more = made
    assert more == []
    assert (one["system"], one["kind"], one["connections"]) == ("bare grpc.aio", "gRPC", 1)
    assert one["rate"] > 0
    assert one["added_p50_s"] == pytest.approx(one["p50_s"] - one["alone_s"])
    assert one["null_rate"] is None


def test_a_gateway_is_held_against_a_server_that_does_nothing(parts: Any, run: Any, beside_null: Any) -> None:
    made = {(one["kind"], one["connections"]): one for _, one in parts.of_gateway._of_model(run, beside_null)}
    assert set(made) == {("binary", 1), ("JSON", 1), ("binary", 32)}
    assert all(one["null_rate"] > 0 and one["failed"] == 0 for one in made.values())
    assert all(one["bound"].startswith("generator-bound") for one in made.values())  # nobody is twice as fast as itself
    assert math.isnan(made["binary", 32]["added_p50_s"])
    assert set(parts.of_gateway._charts(list(made.values()))) == {"latency", "cpu"}


def test_batching_is_a_share_of_the_best_batch_in_process(parts: Any, run: Any, beside_null: Any) -> None:
    (cell,) = parts.of_batching._of_model(run, beside_null)
    best = max(cell.limits[0].rows_per_s.values())
    assert cell.share == pytest.approx(cell.rounds[0].rate / best)
    assert cell.limits[0].alone_cpu_s > 0
    assert len(parts.of_batching._row(cell)) == len(parts.of_batching.HEADINGS)
    assert parts.of_batching._data(cell)["null_rate"] == cell.null


def test_a_bare_loop_answers_rightly_and_is_held_against_the_best_batch_too(parts: Any, run: Any) -> None:
    model = replace(parts.graphs.SMALL_CNN, questions=4)
    with parts.cells.started(run, model, (), ("grpc", "bare")) as up:
        (cell,) = parts.of_batching._of_model(run, up)
    assert up.left_out == []
    assert (cell.system, [one.failed for one in cell.rounds]) == ("bare loop", [0])  # a wrong answer ends the run
    assert cell.share > 0


def test_an_overload_accounts_for_every_query(parts: Any, run: Any, beside_null: Any) -> None:
    ((row, one),) = parts.of_overload._of_server(run, beside_null, beside_null.servers[0], (0.3,))
    seen = one["overload"]
    ends = ("on_time", "late", "refused", "unsent", "unanswered")
    assert seen["offered"] == sum(seen[end] for end in ends) > 0
    assert seen["on_time"] > 0
    assert len(row) == len(parts.of_overload.HEADINGS)
    assert b"<svg" in parts.of_overload._chart(beside_null.prepared.model, [one])


def test_peers_are_seen_by_more_than_one_generator(parts: Any, run: Any, beside_null: Any) -> None:
    cells: Any = {}
    nulls: Any = {}
    for kind in parts.of_peers.KINDS:
        parts.of_peers._round(run, beside_null, kind, cells, nulls, {})
    assert set(cells) == {("stand-in", "binary"), ("stand-in", "JSON")}
    assert set(nulls) == {"binary", "JSON"}
    checks = parts.of_peers._checks(run, beside_null)
    assert {"C", "Python"} <= {one["generator"] for one in checks}
    assert {one["system"] for one in checks} == {"stand-in", "null server"}
    assert all(one["rate"] > 0 for one in checks)


def test_a_peer_that_breaks_down_is_lost_to_the_rest_of_the_run_with_the_reason(
    parts: Any, run: Any, beside_null: Any
) -> None:
    closed_port = replace(beside_null.servers[0], name="gone", address=("127.0.0.1", 1), roots={})
    up = replace(beside_null, servers=[closed_port, *beside_null.servers])
    cells: Any = {}
    lost: Any = {}
    for kind in ("binary", "JSON"):
        parts.of_peers._round(run, up, kind, cells, {}, lost)
    assert set(cells) == {("stand-in", "binary"), ("stand-in", "JSON")}
    assert set(lost) == {"gone"}
    assert "it broke down while it was measured" in lost["gone"].why
    assert "refused" in lost["gone"].why
    ours = replace(up, servers=[replace(closed_port, is_own=True)])
    with pytest.raises(SystemExit, match="refused"):
        parts.of_peers._round(run, ours, "binary", {}, {}, {})


def test_a_peer_that_cannot_be_had_is_left_out_with_the_reason(
    parts: Any, run: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(run.kit.folder))
    monkeypatch.delenv("INFAAS_TEST_TRITONSERVER", raising=False)
    with parts.cells.started(run, model, (), ("triton",)) as up:
        (why,) = [one.why for one in up.left_out if one.name == "Triton python backend"]
    assert "no tritonserver" in why
