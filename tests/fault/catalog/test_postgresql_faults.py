"""PostgreSQL killed, frozen, read-only, cut off, locked, and called with a wrong password: errors come soon, in words,
and all is well afterwards by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest

pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")

from infaas.catalog import postgresql
from infaas.catalog.catalog import Catalog
from infaas.domain.ids import TaskName
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import UnavailableError
from infaas.testing.postgresql import USER, PostgresServer

BOUND_S = 60.0
"""Far above every limit of ours, far below waiting for ever."""


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql.BoundedConnection, "patience_s", 1.0)
    monkeypatch.setattr(postgresql, "LOCK_TIMEOUT_S", 0.5)


@pytest.fixture
def catalog(own_postgres_server: PostgresServer) -> Iterator[Catalog]:
    opened = Catalog.open(own_postgres_server.url(own_postgres_server.new_database()))
    yield opened
    opened.close()


def a_task(name: str) -> Task:
    return Task(TaskName(name), (TensorSpec("x", Datatype.FP32, (-1, 4)),), (TensorSpec("y", Datatype.FP32, (-1, 3)),))


def create(catalog: Catalog, name: str) -> None:
    catalog.create_task(a_task(name), at=1.0, actor="t")


def assert_unavailable(catalog: Catalog, words: str) -> None:
    calls: tuple[Callable[[], object], ...] = (catalog.tasks, lambda: create(catalog, "late"))
    for call in calls:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=words) as error:
            call()
        assert time.monotonic() - began < BOUND_S
        assert error.value.is_retryable
        assert "\n" not in error.value.text
        assert "SELECT" not in error.value.text
    assert catalog.health.read_trouble is not None
    assert catalog.health.write_trouble is not None


def test_a_killed_server_is_unavailable_and_serves_again_when_it_is_back(
    own_postgres_server: PostgresServer, catalog: Catalog
) -> None:
    create(catalog, "kept")
    own_postgres_server.kill()
    assert_unavailable(catalog, "the catalogue cannot be")
    own_postgres_server.start()
    create(catalog, "after")
    assert [task.name for task in catalog.tasks()] == ["after", "kept"]
    assert (catalog.health.read_trouble, catalog.health.write_trouble) == (None, None)


@pytest.mark.long
def test_a_frozen_server_is_unavailable_within_a_bound_and_serves_again(
    own_postgres_server: PostgresServer, catalog: Catalog
) -> None:
    create(catalog, "kept")
    with own_postgres_server.frozen():
        assert_unavailable(catalog, r"did not answer|timeout")
    create(catalog, "after")
    assert [task.name for task in catalog.tasks()] == ["after", "kept"]


def test_a_lock_that_somebody_else_holds_is_unavailable_and_no_reading_waits_for_it(
    own_postgres_server: PostgresServer, catalog: Catalog
) -> None:
    with catalog.engine.connect() as other, other.begin():
        other.exec_driver_sql("SELECT value FROM revision FOR UPDATE")
        with pytest.raises(UnavailableError, match="another transaction holds a lock"):
            create(catalog, "late")
        assert catalog.tasks() == []
    create(catalog, "late")


def test_a_replica_refuses_writes_as_unavailable_and_still_reads(
    own_postgres_server: PostgresServer, catalog: Catalog
) -> None:
    create(catalog, "kept")
    own_postgres_server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    own_postgres_server.execute("SELECT pg_reload_conf()")
    own_postgres_server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with pytest.raises(UnavailableError, match="replica or set to read only"):
        create(catalog, "late")
    assert [task.name for task in catalog.tasks()] == ["kept"]


def test_connections_that_the_server_cut_are_made_again_unseen(
    own_postgres_server: PostgresServer, catalog: Catalog
) -> None:
    create(catalog, "kept")
    own_postgres_server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    assert [task.name for task in catalog.tasks()] == ["kept"]


def test_a_wrong_password_is_an_error_that_no_retry_mends_and_is_never_shown(
    own_postgres_server: PostgresServer,
) -> None:
    url = own_postgres_server.url().replace(quote(own_postgres_server.password, safe=""), "hunter2")
    with pytest.raises(UnavailableError, match="password authentication failed") as error:
        Catalog.open(url)
    assert not error.value.is_retryable
    assert USER in error.value.text
    assert "hunter2" not in error.value.text


def test_a_server_that_is_not_there_at_first_is_taken_up_when_it_comes(own_postgres_server: PostgresServer) -> None:
    catalog = Catalog.at(own_postgres_server.url(own_postgres_server.new_database()))
    try:
        own_postgres_server.kill()
        with pytest.raises(UnavailableError, match="the catalogue cannot be opened"):
            catalog.prepare()
        assert_unavailable(catalog, "the catalogue cannot be opened")
        own_postgres_server.start()
        create(catalog, "after")
        assert [task.name for task in catalog.tasks()] == ["after"]
        assert (catalog.health.read_trouble, catalog.health.write_trouble) == (None, None)
    finally:
        catalog.close()
