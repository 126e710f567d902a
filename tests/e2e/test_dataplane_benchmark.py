"""The data-plane benchmark as a user runs it, in its quick form: it works and says what it should, not how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dataplane" / "run.py"


def run(tmp_path: Path, question: str, *words: str) -> tuple[str, dict[str, Any]]:
    file = tmp_path / "figures.json"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
    command = [sys.executable, SCRIPT, question, "--quick", "--shared", "--json", file, *words]
    done = subprocess.run(list(map(str, command)), env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())[question]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_throughput_says_rates_ratios_and_processor_time_of_every_system(tmp_path: Path) -> None:
    said, found = run(tmp_path, "throughput", "--peers", "grpc", "triton")
    rows = {(one["system"], one["kind"]): one for one in found["figures"]}
    assert {("infaas", "binary"), ("infaas", "JSON"), ("infaas", "gRPC"), ("bare grpc.aio", "gRPC")} <= set(rows)
    assert all(one["rate"] > 0 and one["failed"] == 0 for one in rows.values())
    assert rows["infaas", "binary"]["programs_cpu_per_query_s"]["controller"] > 0
    assert found["left_out"] == [
        {"name": "Triton python backend", "why": "there is no tritonserver here, neither on the PATH nor in "
         "INFAAS_TEST_TRITONSERVER"}
    ] or ("Triton python backend", "binary") in rows  # fmt: skip
    assert "| infaas " in said
    assert "CPU µs/query" in said


@pytest.mark.long
@pytest.mark.timeout(300)
def test_overload_says_what_became_of_every_query(tmp_path: Path) -> None:
    words = ("--peers", "--models", "small-mlp", "--multiples", "0.5", "3")
    said, found = run(tmp_path, "overload", *words)
    assert [one["multiple"] for one in found["figures"]] == [0.5, 3.0]
    for one in found["figures"]:
        seen = one["overload"]
        ends = ("on_time", "late", "refused", "unsent", "unanswered")
        assert seen["offered"] == sum(seen[end] for end in ends) > 0
    assert found["figures"][0]["overload"]["on_time"] > 0
    assert "normal after s" in said
