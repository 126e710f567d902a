"""Selection equals a brute-force evaluation that shares no code with it."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from infaas.domain.task import Model, Task
from infaas.domain.variant import Variant


def _sibling(name: str) -> ModuleType:
    full = f"decide_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


situations = _sibling("situations")


class Dump(msgspec.Struct):
    """A real catalogue: what `INFAAS_TEST_CATALOGUE` points to, as JSON."""

    tasks: list[Task]
    models: list[Model]
    variants: list[Variant]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_random_requirement_sets_over_175_variants_are_decided_as_the_written_rules_say(seed: int) -> None:
    catalogue = situations.synthetic_catalogue(random.Random(seed))
    assert len(catalogue.variants) == 175
    differences, outcomes = situations.compare(catalogue, sets=1_000, seed=seed)
    assert not differences, "\n".join(differences[:5])
    met = {
        "choice", "choice+fallback", "cold", "not-found", "slo-unsatisfiable", "deadline-unreachable", "loading",
        "no-worker", "invalid-argument", "unavailable",
    }  # fmt: skip
    assert met <= set(outcomes), f"the sets must meet every outcome, they met {dict(outcomes)}"
    assert outcomes["choice"] >= 150


def test_a_dumped_catalogue_is_decided_as_the_written_rules_say() -> None:
    path = os.environ.get("INFAAS_TEST_CATALOGUE")
    if not path:
        pytest.skip("INFAAS_TEST_CATALOGUE names no dumped catalogue")
    dump = msgspec.json.decode(Path(path).read_bytes(), type=Dump)
    catalogue = situations.catalogue_of(dump.tasks, dump.models, dump.variants)
    differences, outcomes = situations.compare(catalogue, sets=1_000, seed=11)
    assert not differences, "\n".join(differences[:5])
    assert outcomes["choice"] > 0


def test_the_oracle_imports_nothing_of_what_it_judges() -> None:
    text = Path(__file__).with_name("oracle.py").read_text()
    imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in imports if "infaas_controller" in line]
