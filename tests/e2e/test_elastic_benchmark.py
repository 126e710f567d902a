"""The benchmark of elasticity as a user runs it, in its quick form: it works and says what it should, not how well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from infaas.up.quota import QuotaError, forget, limit_cpu

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "elastic.py"

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _groups() -> None:
    try:
        forget(limit_cpu(f"infaas-test-{os.getpid()}", 0.5))
    except QuotaError as error:
        pytest.skip(str(error))


def test_it_says_what_callers_saw_and_what_the_fleet_did_and_cost_beside_fleets_of_fixed_size(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
    words = ["--quick", "--held", "10", "--workers", "3", "--set", "fleet.downscale_delay_s=4", "--into", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "elastic.md").read_text() in done.stdout
    for name in ("workers", "attainment"):
        assert ElementTree.parse(tmp_path / f"elastic-{name}.svg").getroot().tag.endswith("svg")
    found = json.loads((tmp_path / "elastic.json").read_text())
    scaled, one, many = found["arms"]
    assert (scaled["most_workers"], one["most_workers"], many["fewest_workers"]) == (3, 1, 3)
    queries = sum(found["counts"])
    for arm in found["arms"]:
        assert arm["queries"] == queries
        assert arm["queries"] == sum(phase["queries"] for phase in arm["phases"])
        assert arm["queries"] >= sum(arm["failed"].values())
    assert one["attainment"] < many["attainment"]
    assert set(scaled["lost_on_scale_down"]) <= {"deadline-passed"}, "late on a busy machine, and nothing worse"
    assert (one["worker_seconds"], many["worker_seconds"]) == pytest.approx((30.0, 90.0))
    came = [each for each in found["coming"] if each["ordered_s"] > 0]
    assert came
    assert all(each["connected_s"] is None or each["connected_s"] > each["ordered_s"] for each in came)
    assert {step["action"] for step in found["steps"]} >= {"add"}
    assert "fleet.downscale_delay_s".upper().replace(".", "__") in " ".join(found["settings"])
