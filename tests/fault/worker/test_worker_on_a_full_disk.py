"""What a worker keeps of what it runs, on a disk that has no room left: a real file system, full to the last byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infaas.testing.faults import small_disk

LIFE = """
import sys
from pathlib import Path
from infaas_worker.blackbox import BlackBox
box = BlackBox(Path(sys.argv[1]), "w1")
for number in range(200):
    box.loading(f"i{number}", "v")
    box.loaded(f"i{number}", "v")
    box.began(f"i{number}")
print([one.instance for one in box.deaths], flush=True)
"""
"""Runs two hundred instances and ends without a word."""
FAULT = "Fatal Python error: Segmentation fault\n\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path) as is_mounted:
        if not is_mounted:
            pytest.skip("no small file system can be mounted here")
        yield tmp_path


@contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    yield
    filler.unlink()


def live(disk: Path) -> str:
    """In a process of its own: writing to memory that the disk has no room for would end this one."""
    done = subprocess.run([sys.executable, "-c", LIFE, str(disk)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_worker_that_crashed_starts_on_a_full_disk_and_names_whom_it_blames(disk: Path):
    assert live(disk) == "[]"
    (disk / "worker-w1.fault").write_text(FAULT)
    with full(disk):
        assert "'i199'" in live(disk)
        assert live(disk) == "[]", "it could not be kept for the life after"


def test_a_first_life_begins_on_a_full_disk(disk: Path):
    with full(disk):
        assert live(disk) == "[]"
    assert live(disk) == "[]"
