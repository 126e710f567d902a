"""The data-plane benchmark as a user runs it, in its quick form: it works and says what it should, not how fast."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dataplane" / "run.py"
PEERS_CACHE = "INFAAS_TEST_PEERS_CACHE"
"""A folder in which an earlier run of the benchmark left the environments of peers: making them takes long."""
GENERATOR = "c" if shutil.which("cc") else "python"

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def run(
    tmp_path: Path, question: str, *words: str, cache: Path | None = None, status: int = 0
) -> tuple[str, dict[str, Any]]:
    """What it printed and its figures; every picture is whole."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
    command = [
        sys.executable, SCRIPT, question, "--quick", "--shared", "--into", tmp_path / "into", "--generator", GENERATOR,
        "--cache", cache or tmp_path / "cache", *words,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    into = tmp_path / "into"
    assert (into / f"{question}.md").read_text().strip() in done.stdout
    drawn = list(into.glob(f"{question}-*.svg"))
    assert drawn
    for file in drawn:
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
    found: dict[str, Any] = json.loads((into / f"{question}.json").read_text())
    return done.stdout, found


def left_out(found: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["why"] for one in found["left_out"]}


def test_peers_says_rates_ratios_and_processor_time_of_every_system(tmp_path: Path) -> None:
    said, found = run(tmp_path, "peers", "--peers", "grpc", "triton", "--seconds", "0.6")
    figures = found["figures"]
    rows = {(one["system"], one["kind"]): one for one in figures["systems"]}
    assert {("infaas", "binary"), ("infaas", "JSON"), ("infaas", "gRPC"), ("bare grpc.aio", "gRPC")} <= set(rows)
    assert all(one["rate"] > 0 and one["failed"] == 0 for one in rows.values())
    assert rows["infaas", "binary"]["programs_cpu_per_query_s"]["controller"] > 0
    assert ("Triton python backend", "binary") in rows or "no tritonserver" in left_out(found)["Triton python backend"]
    assert ("infaas, inline worker", "binary") in rows or "inline" in left_out(found)["infaas, inline worker"]
    assert {one["generator"] for one in figures["generators"]} >= {"Python"}
    shipped = figures["shipped"][0]
    assert shipped["variants"] >= 20
    assert "x-infaas-decision-id" in shipped["headers"]
    assert "| infaas " in said
    assert "CPU µs/query" in said


def test_peers_of_python_packages_answer_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1]))
    from dataplane.environments import is_there

    cache = os.environ.get(PEERS_CACHE)
    if not cache:
        pytest.skip(f"{PEERS_CACHE} names no folder with environments of peers")
    names = {
        "fastapi": "FastAPI + orjson", "mosec": "mosec, batches of 32", "mosec-alone": "mosec as it comes",
        "mlserver": "MLServer", "ray": "Ray Serve",
    }  # fmt: skip
    environments = {"mosec-alone": "mosec"}
    there = [name for name in names if is_there(environments.get(name, name), Path(cache))]
    if not there:
        pytest.skip(f"{cache} holds no environment for this interpreter")
    _, found = run(tmp_path, "peers", "--variants", "0", "--peers", *there, cache=Path(cache))
    rates = {one["system"]: one["rate"] for one in found["figures"]["systems"] if one["kind"] == "JSON"}
    assert {names[name] for name in there} <= set(rates)


def test_gateway_says_what_is_added_to_the_model_and_by_which_program(tmp_path: Path) -> None:
    said, found = run(tmp_path, "gateway", "--variants", "0", "--peers", "grpc", "--models", "small-mlp", "small-cnn")
    cells = found["figures"]["cells"]
    assert {(one["model"], one["connections"]) for one in cells} == {
        (model, connections) for model in ("small-mlp", "small-cnn") for connections in (1, 32)
    }
    assert all(one["added_cpu_s"] > 0 for one in cells if one["system"] == "infaas" and one["kind"] == "JSON")
    assert "one frame" in left_out(found)["gRPC"]
    assert "added CPU µs" in said


def test_batching_says_the_share_of_the_best_offline_batch(tmp_path: Path) -> None:
    said, found = run(tmp_path, "batching", "--variants", "0", "--models", "small-mlp")
    row = next(one for one in found["figures"]["models"] if one["system"] == "infaas")
    assert 0 < row["share"] < 1
    assert set(row["limits"][0]["rows_per_s"]) == {"1", "2", "4", "8", "16", "32"}
    assert "of the best" in said


def test_overload_says_what_became_of_every_query(tmp_path: Path) -> None:
    words = ("--variants", "0", "--peers", "--models", "small-mlp", "--multiples", "0.5", "3")
    said, found = run(tmp_path, "overload", *words)
    cells = found["figures"]["cells"]
    wanted = [(system, multiple) for system in ("infaas", "infaas, inline worker") for multiple in (0.5, 3.0)]
    assert [(one["system"], one["multiple"]) for one in cells] == wanted
    for one in cells:
        seen = one["overload"]
        ends = ("on_time", "late", "refused", "unsent", "unanswered")
        assert seen["offered"] == sum(seen[end] for end in ends) > 0
        assert sum(seen["refused_by"].values()) == seen["refused"]
    assert all(one["overload"]["on_time"] > 0 for one in cells if one["multiple"] < 1)
    assert "normal after s" in said


def test_decision_says_what_each_costs_by_the_size_of_the_cluster(tmp_path: Path) -> None:
    said, found = run(tmp_path, "decision")
    assert [one["instances"] for one in found["figures"]] == [10, 100, 1_000, 5_000, 10_000]
    assert all(one["amortised_us"] > 0 for one in found["figures"])
    assert "of 16 µs" in said


def test_soak_says_what_stayed_and_whether_it_passed(tmp_path: Path) -> None:
    said, found = run(tmp_path, "soak")
    figures = found["figures"]
    assert figures["wrong"] == []
    assert figures["held"] == {}
    assert figures["rounds"][-1]["samples"]["controller"]["tasks"] > 0
    assert set(figures["memory_slope_bytes_per_s"]) == set(figures["rounds"][0]["samples"])
    assert "passed" in said


def test_flame_says_what_each_program_did(tmp_path: Path) -> None:
    said, found = run(tmp_path, "flame", "--variants", "0")
    rows = found["figures"]["rows"]
    assert {program for _, program, *_ in rows} >= {"controller", "worker-local-1"}
    assert any("http_protocol" in function for _, program, function, *_ in rows if program == "controller")
    assert "by itself" in said
