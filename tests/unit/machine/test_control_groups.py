"""Quotas and limits as the kernel shows them, in both versions of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infaas.machine import (
    allowed_cores,
    cpu_quota,
    memory_limit_bytes,
    memory_used_ratio,
    usable_cores,
    usable_memory_bytes,
    whole_cores,
)

UNLIMITED_V1 = 9223372036854771712


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "2000 10000"}, 0.2),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "250000"}, None),
        (
            {"cpu.max": "max 100000", "cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
            None,
        ),
    ],
)
def test_the_quota_is_read_from_version_2_else_from_version_1(tmp_path: Path, files: dict[str, str], quota: float):
    assert cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("allowed", "quota", "cores"),
    [(4, None, 4), (4, 64.0, 4), (4, 2.0, 2), (4, 1.99, 1), (4, 0.2, 1), (1, 3.0, 1), (8, 0.1 * 30, 3)],
)
def test_as_many_cores_are_usable_as_the_quota_pays_for_wholly_and_at_least_one(
    allowed: int, quota: float | None, cores: int
):
    assert whole_cores(allowed, quota) == cores


def test_this_process_has_the_cores_of_its_affinity_up_to_its_quota(tmp_path: Path):
    assert allowed_cores() == tuple(sorted(os.sched_getaffinity(0)))
    assert usable_cores(tmp_path) == len(allowed_cores())
    assert usable_cores(write(tmp_path, {"cpu.max": "50000 100000"})) == 1


STATISTICS = "anon 200\nfile 700\ninactive_file 600\ntotal_inactive_file 400\n"
"""Of a group that has read files: most of what is charged to it is cache."""


@pytest.mark.parametrize(
    ("files", "limit", "ratio"),
    [
        ({}, None, None),
        ({"memory.max": "max", "memory.current": "250"}, None, None),
        ({"memory.max": "1000"}, 1000, None),
        ({"memory.max": "1000", "memory.current": "250"}, 1000, 0.25),
        ({"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "500"}, 1000, 0.5),
        ({"memory/memory.limit_in_bytes": str(UNLIMITED_V1), "memory/memory.usage_in_bytes": "500"}, None, None),
        ({"memory.max": "1000", "memory/memory.limit_in_bytes": str(UNLIMITED_V1)}, 1000, None),
        ({"memory.max": "1000", "memory.current": "900", "memory.stat": STATISTICS}, 1000, 0.3),
        ({"memory.max": "1000", "memory.current": "500", "memory.stat": STATISTICS}, 1000, 0.0),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "900",
                "memory/memory.stat": STATISTICS,
            },
            1000,
            0.5,
        ),
    ],
)
def test_the_memory_limit_and_how_full_it_is_are_read_from_version_2_else_from_version_1(
    tmp_path: Path, files: dict[str, str], limit: int | None, ratio: float | None
):
    root = write(tmp_path, files)
    assert (memory_limit_bytes(root), memory_used_ratio(root)) == (limit, ratio)


def test_usable_memory_is_the_machines_unless_the_limit_is_less(tmp_path: Path):
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert usable_memory_bytes(tmp_path) == machine_bytes
    assert usable_memory_bytes(write(tmp_path, {"memory.max": str(2**20)})) == 2**20
    assert usable_memory_bytes(write(tmp_path, {"memory.max": str(machine_bytes * 4)})) == machine_bytes
