"""PostgreSQL as the catalogue: connections on which no call waits for ever.

The server bounds what it works on (statement and lock timeouts). A server that is stopped, or cut off behind a live
network connection, bounds nothing, so the client has its own limit around every wait; a connection that hit it is
closed, because nobody knows any more what it would say next.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.rows import TupleRow
from sqlalchemy.engine import URL, Connection, Engine

CONNECT_TIMEOUT_S = 5
LOCK_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 8.0
ANSWER_TIMEOUT_S = 10.0
MIGRATION_TIMEOUT_S = 600.0
POOL_TIMEOUT_S = 5.0
_NETWORK: dict[str, object] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "application_name": "infaas",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": int(ANSWER_TIMEOUT_S * 1e3),
}
"""What the URL's own parameters may override."""

T = TypeVar("T")


class BoundedConnection(psycopg.Connection[TupleRow]):
    """`patience_s` is the longest that one call may wait for the server; then it raises OperationalError."""

    patience_s = ANSWER_TIMEOUT_S

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        try:
            return super().wait(_bounded(gen, time.monotonic() + self.patience_s), *args, **kwargs)
        except TimeoutError:
            self.close()
            raise psycopg.OperationalError(f"the server did not answer within {self.patience_s:g} s") from None


def _bounded(waiting: Generator[Any, Any, T], deadline: float) -> Generator[Any, Any, T]:
    """Hands a driver's wait on, until the deadline: the driver says each interval that nothing has come."""
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= deadline:
                waiting.close()
                raise TimeoutError
            wanted = waiting.send(ready)
    except StopIteration as end:
        found: T = end.value
        return found


def postgresql_engine(url: URL) -> Engine:
    engine = sa.create_engine(
        url, pool_size=4, max_overflow=8, pool_timeout=POOL_TIMEOUT_S, pool_pre_ping=True, hide_parameters=True
    )
    sa.event.listen(engine, "do_connect", _connect)
    sa.event.listen(engine, "connect", _prepare)
    return engine


def _connect(_dialect: Any, _record: Any, words: Any, options: dict[str, Any]) -> BoundedConnection:
    return BoundedConnection.connect(*words, **{**_NETWORK, **options})


def _prepare(connection: BoundedConnection, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET statement_timeout = {int(STATEMENT_TIMEOUT_S * 1e3)}")
        cursor.execute(f"SET lock_timeout = {int(LOCK_TIMEOUT_S * 1e3)}")
        cursor.execute(f"SET idle_in_transaction_session_timeout = {int(ANSWER_TIMEOUT_S * 1e3)}")
    connection.commit()


@contextmanager
def patient(connection: Connection) -> Iterator[None]:
    """For migrations: large tables take their time, and other processes may be migrating first."""
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, BoundedConnection)
    limit = int(MIGRATION_TIMEOUT_S * 1e3)
    driver.patience_s = MIGRATION_TIMEOUT_S
    try:
        for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            connection.exec_driver_sql(f"SET LOCAL {name} = {limit}")
        yield
    finally:
        driver.patience_s = ANSWER_TIMEOUT_S
