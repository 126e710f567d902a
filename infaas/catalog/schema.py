"""Opening the database: engine options of each kind of database, and migrations up and down.

A SQLite catalogue uses the write-ahead log, so that readers never wait for the writer, and takes the write lock at the
start of a writing transaction, so that two writers queue instead of failing half-way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, Engine, make_url

from infaas.catalog.lost import LOST, as_unavailable
from infaas.errors import SettingsError
from infaas.observe.log import get_logger

_log = get_logger(__name__)
BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another one. Callers wait as long; then they are told to come again."""
POOL_TIMEOUT_S = 5.0
WRITES = {"infaas_writes": True}
"""Execution option of connections that will write."""
_MIGRATION_LOCK = 0x1FAA5


def open_engine(url: str) -> Engine:
    """An engine for `sqlite:///file` or a PostgreSQL URL. Raises SettingsError for a URL that names neither."""
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:  # whose text may quote the URL, and with it a password
        raise SettingsError(
            "catalog.database_url is not a database URL; use sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise SettingsError(
                "catalog.database_url: SQLite needs a file; an in-memory catalogue would lose everything"
            )
        _make_folder(Path(parsed.database).parent)
        engine = sa.create_engine(
            parsed,
            connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
            pool_size=4,
            max_overflow=8,
            pool_timeout=POOL_TIMEOUT_S,
            hide_parameters=True,
        )
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if backend == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        return _open_postgresql(parsed)
    raise SettingsError(f"catalog.database_url: {backend!r} is not supported; use sqlite:///file or postgresql://...")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"catalog.database_url: its folder {str(folder)!r} cannot be made: {error}") from error


def _open_postgresql(url: sa.URL) -> Engine:
    if url.drivername != "postgresql+psycopg":
        raise SettingsError(
            f"catalog.database_url: the driver of {url.drivername!r} is not supported; use postgresql://..."
        )
    try:
        from infaas.catalog.postgresql import postgresql_engine
    except ImportError as error:
        raise SettingsError(
            f"catalog.database_url names PostgreSQL, whose driver cannot be loaded ({error}); "
            "pip install 'infaas[postgres]'"
        ) from error
    return postgresql_engine(url)


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: the driver's own habit would start transactions late
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    is_writing = connection.get_execution_options().get("infaas_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def migrate(engine: Engine, target: str = "head") -> None:
    """Bring the tables to a revision, up or down (`base` removes them). Processes that open at once take turns.

    Tables of the release after this one are left as they are: they hold what these hold, and more (ADR 33). Raises
    UnavailableError when the database cannot be reached, SettingsError when it is newer than that.
    """
    try:
        with (
            engine.connect().execution_options(**WRITES) as connection,
            _unchecked_references(connection),
            connection.begin(),
            _taking_turns(connection),
        ):
            now = MigrationContext.configure(connection).get_current_revision()
            script = ScriptDirectory.from_config(_config())  # after connecting: a database that is away is asked often
            if target == "head" and is_next(now, script.get_current_head()):
                _log.warning(
                    "the catalogue has the tables of the next release, which are used as they are", revision=now
                )
                return
            _refuse_unknown(script, now)
            if target == "head" and now == script.get_current_head():
                return
            config = _config()
            config.attributes["connection"] = connection
            if target == "base" or _is_older(script, target, now):
                command.downgrade(config, target)
            else:
                command.upgrade(config, target)
    except LOST as error:
        raise as_unavailable(error, "opened") from error


@contextmanager
def _unchecked_references(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by making it anew, which must not be taken for the deletion of all that others refer to.
    It heeds this setting outside of transactions only."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.dbapi_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


@contextmanager
def _taking_turns(connection: Connection) -> Iterator[None]:
    """One migration at a time. SQLite's write lock, which the transaction began with, sees to it by itself; there,
    every reference is checked at the end instead of at each step."""
    if connection.dialect.name != "postgresql":
        yield
        if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall():
            raise SettingsError(
                f"the migration would leave references to nothing in {sorted({row[0] for row in broken})}"
            )
        return
    from infaas.catalog.postgresql import patient

    with patient(connection):
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        yield


def is_next(revision: str | None, head: str | None) -> bool:
    """Whether a revision is the one after `head`: a release adds one at most, and one that takes something away leaves
    a number out."""
    if revision is None or head is None or not revision.isdigit():
        return False
    return int(revision) == int(head) + 1


def revisions() -> tuple[str, ...]:
    """All that there are, oldest first."""
    script = ScriptDirectory.from_config(_config())
    return tuple(revision.revision for revision in reversed(list(script.walk_revisions())))


def current_revision(engine: Engine) -> str | None:
    """None for a database without our tables. Raises UnavailableError."""
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    except LOST as error:
        raise as_unavailable(error, "opened") from error


def _config() -> Config:
    config = Config()
    location: Any = resources.files("infaas.catalog") / "migrations"
    config.set_main_option("script_location", str(location).replace("%", "%%"))
    return config


def _refuse_unknown(script: ScriptDirectory, now: str | None) -> None:
    if now is not None and now not in {revision.revision for revision in script.walk_revisions()}:
        raise SettingsError(
            f"the catalogue has revision {now!r}, which this program does not know; it was written by a newer one"
        )


def _is_older(script: ScriptDirectory, target: str, now: str | None) -> bool:
    if target == "head" or now is None:
        return False
    older = {revision.revision for revision in script.iterate_revisions(now, "base")} - {now}
    return target in older
