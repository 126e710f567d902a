from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from infaas.catalog.catalog import Catalog
from infaas.catalog.records import Registration
from infaas.catalog.schema import current_revision, migrate, open_engine, revisions
from infaas.catalog.tables import metadata
from infaas.domain.build import BuildResult
from infaas.domain.ids import DecisionId, TaskName, VersionId
from infaas.domain.lifecycle import BuildState
from infaas.domain.query import Decision, Level
from infaas.errors import SettingsError, UnavailableError

HEAD = revisions()[-1]


def test_migrations_lead_to_exactly_the_tables_that_the_code_uses(database_url: str) -> None:
    engine = open_engine(database_url)
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_migrations_go_up_down_and_up_again(database_url: str) -> None:
    engine = open_engine(database_url)
    migrate(engine)
    assert current_revision(engine) == HEAD
    migrate(engine, "base")
    assert current_revision(engine) is None
    assert set(sa.inspect(engine).get_table_names()) <= {"alembic_version"}
    migrate(engine)
    assert current_revision(engine) == HEAD
    engine.dispose()


@pytest.mark.skipif(len(revisions()) < 2, reason="there is no revision to go back to yet")
def test_what_is_registered_outlives_going_one_revision_down_and_up_again(
    database_url: str, registration: Callable[..., Registration], made: Callable[..., BuildResult]
) -> None:
    catalog = Catalog.open(database_url)
    catalog.register(registration(labels={"team": "a"}), at=1.0, actor="t")
    catalog.record_result(VersionId("m@1"), made(), at=2.0)
    catalog.finish(VersionId("m@1"), BuildState.READY, "", at=3.0)
    catalog.switch("m", 1, at=4.0)
    catalog.write_decisions([a_decision()])

    def known() -> object:
        return (
            catalog.tasks(), catalog.models(), catalog.versions(), catalog.variants(),
            catalog.results(VersionId("m@1")),
            [replace(decision, candidates=()) for decision in catalog.recent_decisions(10)], catalog.audit_log(),
            catalog.revision(),
        )  # fmt: skip

    before = known()
    migrate(catalog.engine, revisions()[-2])
    assert current_revision(catalog.engine) == revisions()[-2]
    migrate(catalog.engine)
    assert current_revision(catalog.engine) == HEAD
    assert known() == before
    assert catalog.register(registration("2" * 64, is_task_known=True), at=5.0, actor="t").version.number == 2
    catalog.close()


def a_decision() -> Decision:
    ids = (DecisionId("d-1"), "r-1")
    at = "2026-01-01T00:00:00.000Z"
    return Decision(*ids, at, "digits", Level.TASK, TaskName("digits"), "slo", {}, "saturated", "because")


def test_opening_twice_keeps_what_is_there(database_url: str) -> None:
    first = Catalog.open(database_url)
    first.claim_key("k", "f" * 64, at=1.0)
    first.close()
    second = Catalog.open(database_url)
    second.keep_answer("k", "answer")
    assert second.claim_key("k", "f" * 64, at=2.0) == "answer"
    second.close()


def _open(url: str) -> str | None:
    catalog = Catalog.open(url)
    try:
        return current_revision(catalog.engine)
    finally:
        catalog.close()


def test_processes_that_open_a_new_catalogue_at_once_all_succeed(database_url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert set(pool.map(_open, [database_url] * 6)) == {HEAD}


def test_a_catalogue_of_a_newer_program_is_refused(database_url: str) -> None:
    engine = open_engine(database_url)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SettingsError, match="newer"):
        migrate(engine)
    engine.dispose()


def step_on(engine: sa.Engine) -> str:
    """The tables as a later release may leave them: with a further column, a further table, and the next number."""
    following = f"{int(HEAD) + 1:04}"
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE models ADD COLUMN later VARCHAR(8) DEFAULT 'x' NOT NULL"))
        connection.execute(sa.text("CREATE TABLE later (id INTEGER PRIMARY KEY)"))
        connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{following}'"))
    return following


def test_tables_of_the_next_release_are_used_and_left_as_they_are(
    database_url: str, registration: Callable[..., Registration], made: Callable[..., BuildResult]
) -> None:
    """As by a controller of the version before that starts in the middle of an upgrade."""
    engine = open_engine(database_url)
    migrate(engine)
    following = step_on(engine)
    catalog = Catalog.open(database_url)
    catalog.register(registration(labels={"team": "a"}), at=1.0, actor="t")
    catalog.record_result(VersionId("m@1"), made(), at=2.0)
    catalog.finish(VersionId("m@1"), BuildState.READY, "", at=3.0)
    catalog.switch("m", 1, at=4.0)
    catalog.write_decisions([a_decision()])
    assert [model.name for model in catalog.models()] == ["m"]
    assert current_revision(engine) == following
    with pytest.raises(SettingsError, match="newer"):
        migrate(engine, "0001")
    catalog.close()
    engine.dispose()


@pytest.mark.parametrize(("before", "after"), list(pairwise(revisions())))
def test_a_revision_leaves_programs_of_the_one_before_all_that_they_use(
    database_url: str, before: str, after: str
) -> None:
    """Else it must leave a number out."""
    engine = open_engine(database_url)
    migrate(engine, before)
    old = _shape(engine)
    migrate(engine, after)
    new = _shape(engine)
    if int(after) > int(before) + 1:
        return
    for table, columns in old.items():
        for name, (kind, _, _) in columns.items():
            assert new[table][name][0] == kind, f"{table}.{name} is another one"
        for name in new[table].keys() - columns.keys():
            _, is_nullable, has_default = new[table][name]
            assert is_nullable or has_default, f"{table}.{name} must be written, and a program of {before} does not"
    engine.dispose()


def _shape(engine: sa.Engine) -> dict[str, dict[str, tuple[str, bool, bool]]]:
    """Of each table, each column's type, and whether it may be left out."""
    inspector = sa.inspect(engine)
    return {
        table: {
            column["name"]: (str(column["type"]), bool(column["nullable"]), column["default"] is not None)
            for column in inspector.get_columns(table)
        }
        for table in inspector.get_table_names()
    }


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


def test_a_lost_database_is_unavailable(database_url: str) -> None:
    catalog = Catalog.open(database_url)
    migrate(catalog.engine, "base")
    with pytest.raises(UnavailableError):
        catalog.tasks()
    catalog.close()
