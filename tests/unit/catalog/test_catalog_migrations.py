from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from infaas.catalog.catalog import Catalog
from infaas.catalog.schema import current_revision, migrate, open_engine
from infaas.catalog.tables import metadata
from infaas.errors import SettingsError, UnavailableError


def test_migrations_lead_to_exactly_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/c.db")
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_migrations_go_up_down_and_up_again(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/c.db")
    migrate(engine)
    head = current_revision(engine)
    migrate(engine, "base")
    assert current_revision(engine) is None
    assert set(sa.inspect(engine).get_table_names()) <= {"alembic_version"}
    migrate(engine)
    assert current_revision(engine) == head
    engine.dispose()


def test_opening_twice_keeps_what_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/c.db"
    first = Catalog.open(url)
    first.claim_key("k", "f" * 64, at=1.0)
    first.close()
    second = Catalog.open(url)
    second.keep_answer("k", "answer")
    assert second.claim_key("k", "f" * 64, at=2.0) == "answer"
    second.close()


def _open(url: str) -> str | None:
    catalog = Catalog.open(url)
    try:
        return current_revision(catalog.engine)
    finally:
        catalog.close()


def test_processes_that_open_a_new_catalogue_at_once_all_succeed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/c.db"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert set(pool.map(_open, [url] * 6)) == {"0002"}


def test_a_catalogue_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/c.db")
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SettingsError, match="newer"):
        migrate(engine)
    engine.dispose()


def test_sqlite_waits_for_locks_keeps_a_log_and_checks_references(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/c.db")
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "foreign_keys")
        }
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() >= 5000
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1}
    engine.dispose()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db", "nonsense"])
def test_a_database_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"catalog\.database_url"):
        open_engine(url)


def test_a_lost_database_is_unavailable(tmp_path: Path) -> None:
    catalog = Catalog.open(f"sqlite:///{tmp_path}/c.db")
    migrate(catalog.engine, "base")
    with pytest.raises(UnavailableError):
        catalog.tasks()
    catalog.close()


def test_every_table_can_be_made_on_postgresql() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
