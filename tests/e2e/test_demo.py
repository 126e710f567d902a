"""`infaas demo` as the README tells its readers to run it: the main job on real input, and its figures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from running_system import System

PATIENCE_S = 600.0


@pytest.mark.long
@pytest.mark.timeout(PATIENCE_S + 60)
def test_the_demo_serves_every_set_from_variants_that_satisfy_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    said = System(tmp_path / "unused").infaas("demo", "--output", output, "--queries", "600", timeout_s=PATIENCE_S)

    found = json.loads((output / "results.json").read_text())
    variants = {variant["name"]: variant for variant in found["variants"]}
    assert len(variants) >= 15
    latencies = [variant["p50_ms"] for variant in variants.values()]
    assert max(latencies) / min(latencies) >= 30
    assert max(latencies) >= 10
    scores = [variant["accuracy"]["value"] for variant in variants.values()]
    assert max(scores) - min(scores) >= 0.06
    assert {variant["accuracy"]["source"] for variant in variants.values()} == {"measured"}

    sets = {one["name"]: one for one in found["sets"]}
    assert len(sets) >= 8
    assert sum(one["sent"] for one in sets.values()) >= 500
    for name, one in sets.items():
        assert one["below_floor"] == 0, name
        assert one["answered"] + sum(one["refused"].values()) == one["sent"], name
        assert set(one["variants"]) <= set(variants), name
        if name == "impossible":
            assert one["answered"] == 0
            assert set(one["refused"]) == {"slo-unsatisfiable"}
        else:
            assert one["answered"] > 0, name
            floor = one["accuracy_floor"] or 0.0
            is_labelled = one["fallbacks"] > 0
            assert is_labelled or all(variants[v]["accuracy"]["value"] >= floor for v in one["variants"]), name
    assert sets["fallback"]["fallbacks"] == sets["fallback"]["answered"]
    assert len({variant for one in sets.values() for variant in one["variants"]}) >= 3

    root = ElementTree.parse(output / "frontier.svg").getroot()
    assert root.tag.endswith("svg")
    assert "every sum and difference exact" in said
    assert "0 answers below a stated floor" in said
    assert "/v2/models/digits/infer" in said
