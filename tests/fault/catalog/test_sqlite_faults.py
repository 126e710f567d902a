"""SQLite locked, full, read-only and damaged: reading goes on where it can, errors come soon and in words."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infaas.catalog import schema
from infaas.catalog.catalog import Catalog
from infaas.domain.ids import TaskName
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import SettingsError, UnavailableError


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalog]:
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_S", 0.3)
    opened = Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    yield opened
    opened.close()


def create(catalog: Catalog, name: str, padding: int = 0) -> None:
    specs = (TensorSpec("x" * (1 + padding), Datatype.FP32, (-1, 4)),)
    catalog.create_task(Task(TaskName(name), specs, specs), at=1.0, actor="t")


def test_a_locked_catalogue_is_read_and_refuses_writes_until_the_lock_is_gone(catalog: Catalog, tmp_path: Path) -> None:
    create(catalog, "kept")
    holder = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match=r"locked.*another process holds its write lock") as error:
        create(catalog, "late")
    assert error.value.is_retryable
    assert error.value.retry_after_s is not None
    assert "INSERT" not in error.value.text
    assert [task.name for task in catalog.tasks()] == ["kept"]
    assert catalog.health.read_trouble is None
    assert catalog.health.write_trouble is not None
    holder.close()
    catalog.prove_writable()
    assert catalog.health.write_trouble is None
    create(catalog, "late")


def test_a_full_disk_refuses_writes_keeps_reading_and_mends(catalog: Catalog) -> None:
    """The kernel's own limit on the size of files stands in for the disk, in a process that only has this catalogue."""
    create(catalog, "kept")
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(catalog.engine.url)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    create(catalog, "after")
    names = [task.name for task in catalog.tasks()]
    assert {"kept", "after", "t000", "t999"} <= set(names)


_FULL_DISK = """
import resource, signal, sys
from infaas.catalog.catalog import Catalog
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import UnavailableError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
catalog = Catalog.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))

def create(number, size):
    specs = (TensorSpec('x' * size, Datatype.FP32, (-1, 4)),)
    catalog.create_task(Task(f't{number:03}', specs, specs), at=1.0, actor='t')

for number in range(100):
    try:
        create(number, 2_000)
    except UnavailableError as error:
        assert 'full' in error.text or 'I/O' in error.text, error.text
        assert 'INSERT' not in error.text and error.is_retryable
        break
else:
    raise SystemExit('the disk never was full')
before = [task.name for task in catalog.tasks()]
assert 'kept' in before and f't{number:03}' not in before
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
create(999, 1)
assert catalog.health.write_trouble is None
catalog.close()
"""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write whatever the mode says")
def test_a_catalogue_without_write_permission_is_unavailable_and_says_so(catalog: Catalog, tmp_path: Path) -> None:
    catalog.close()
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(UnavailableError, match="cannot be opened"):
            Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    finally:
        tmp_path.chmod(0o700)


def test_a_damaged_file_is_an_error_that_no_retry_mends(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(UnavailableError, match="restore it from a backup") as error:
        Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    assert not error.value.is_retryable


def test_a_folder_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="folder"):
        Catalog.open(f"sqlite:///{tmp_path}/file/catalog.db")


def test_a_catalogue_that_cannot_be_opened_at_first_is_taken_up_by_the_first_call_that_can(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").mkdir()  # what nobody can open, root included
    catalog = Catalog.at(f"sqlite:///{tmp_path}/catalog.db")
    try:
        for call in (catalog.prepare, catalog.tasks, catalog.revision, lambda: create(catalog, "late")):
            with pytest.raises(UnavailableError, match="unable to open database file") as error:
                call()
            assert error.value.is_retryable
        assert catalog.health.read_trouble is not None
        assert catalog.health.write_trouble is not None
        (tmp_path / "catalog.db").rmdir()
        create(catalog, "after")
        assert [task.name for task in catalog.tasks()] == ["after"]
        assert (catalog.health.read_trouble, catalog.health.write_trouble) == (None, None)
    finally:
        catalog.close()


def test_while_one_call_opens_the_catalogue_the_others_are_told_to_come_again(tmp_path: Path) -> None:
    catalog = Catalog.at(f"sqlite:///{tmp_path}/catalog.db")
    try:
        with catalog._preparing, pytest.raises(UnavailableError, match="is being opened") as error:
            catalog.tasks()
        assert error.value.is_retryable
        assert catalog.tasks() == []
    finally:
        catalog.close()


def test_tables_of_a_newer_program_end_a_start_and_are_unavailable_when_they_turn_up_later(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/catalog.db"
    Catalog.open(url).close()
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    catalog = Catalog.at(url)
    try:
        with pytest.raises(SettingsError, match="newer"):
            catalog.prepare()
        with pytest.raises(UnavailableError, match="newer") as error:
            catalog.tasks()
        assert not error.value.is_retryable
        assert "newer" in (catalog.health.read_trouble or "")
    finally:
        catalog.close()
