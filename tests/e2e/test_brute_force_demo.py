"""Selection over the variants that a real system made and measured equals the brute-force evaluation."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from running_system import PATIENCE_S, System

from infaas.demo import family
from infaas.domain.task import Model, Task
from infaas.domain.variant import Variant
from infaas.rpc.codec import decode, to_plain
from infaas.store.base import Kind, Record
from infaas.store.redis import RedisStore

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
COMPARISON = Path(__file__).parents[1] / "unit" / "decide" / "test_brute_force.py"
TEST = "test_a_dumped_catalogue_is_decided_as_the_written_rules_say"


def test_a_thousand_random_requirement_sets_over_the_demo_s_own_variants(family_system: System, tmp_path: Path) -> None:
    records = asyncio.run(_records(family_system))
    tasks = [decode(record.value, Task) for record in records if record.kind is Kind.TASK]
    models = [decode(record.value, Model) for record in records if record.kind is Kind.MODEL]
    variants = [decode(record.value, Variant) for record in records if record.kind is Kind.VARIANT]
    assert {model.name for model in models} >= {model.name for model in family.FAMILY}
    assert len(variants) >= 15
    dump = tmp_path / "catalogue.json"
    dump.write_bytes(
        msgspec.json.encode({"tasks": to_plain(tasks), "models": to_plain(models), "variants": to_plain(variants)})
    )

    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"{COMPARISON}::{TEST}", "-rs"],
        env={**os.environ, "INFAAS_TEST_CATALOGUE": str(dump)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


async def _records(system: System) -> list[Record]:
    store = RedisStore(f"unix://{system.folder}/redis.sock")
    try:
        return list((await store.list((Kind.TASK, Kind.MODEL, Kind.VARIANT))).records)
    finally:
        await store.close()
