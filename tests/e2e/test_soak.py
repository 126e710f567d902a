"""Rounds of queries, some cancelled and some malformed: every answer right, and nothing left of them at the end.

INFAAS_TEST_SOAK_ROUNDS=50 makes it the full quarter of a million; `benchmarks/soak.py` says what is allowed to grow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"
ROUNDS = int(os.environ.get("INFAAS_TEST_SOAK_ROUNDS", "10"))
QUERIES = 5_000


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_nothing_is_left_of_many_queries_cancelled_and_malformed_ones_among_them() -> None:
    words = [sys.executable, SCRIPT, "--rounds", str(ROUNDS), "--queries", str(QUERIES), "--json"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["wrong"] == []
    assert report["held"] == {}
    assert report["left"] == []
    assert report["queries"] == sum(report["outcomes"].values()) == ROUNDS * QUERIES
    for kind, share in (("cancelled", 0.10), ("malformed", 0.01)):
        assert share * 0.8 < report["outcomes"][kind] / report["queries"] < share * 1.2
    assert done.returncode == 0
