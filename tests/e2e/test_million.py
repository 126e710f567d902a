"""Small queries over both protocols, each answer held against its input.

INFAAS_TEST_MILLION=1000000 makes it the full million; `benchmarks/million.py` says what is checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "million.py"
QUERIES = int(os.environ.get("INFAAS_TEST_MILLION", "20000"))


@pytest.mark.long
@pytest.mark.timeout(max(300, QUERIES // 100))
def test_no_answer_is_lost_mixed_up_or_given_twice_while_others_are_taken_back() -> None:
    words = [sys.executable, SCRIPT, "--queries", str(QUERIES), "--json"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    for wrong in ("lost", "refused", "mixed_up", "twice"):
        assert report[wrong] == []
    assert report["unasked"] == 0
    assert report["held"] == {}
    assert report["queries"] == QUERIES
    assert 0 < report["taken_back"] < 0.05 * QUERIES
    assert QUERIES <= report["served"] <= QUERIES + report["taken_back"]
    assert report["is_whole"]
    assert done.returncode == 0
