"""Transactions of the catalogue: how a read and a write run, and what database errors become."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from infaas.catalog.lost import LOST, as_unavailable, is_collision, reason_of
from infaas.catalog.schema import WRITES, migrate
from infaas.catalog.tables import audit, identity, names, revision
from infaas.domain.query import Level
from infaas.errors import ConflictError, InfaasError, SettingsError, UnavailableError

T = TypeVar("T")
_WRITE_ATTEMPTS = 4


@dataclass(slots=True)
class Health:
    """How the last read and the last write fared; None: well. Written by whichever thread came last."""

    read_trouble: str | None = None
    write_trouble: str | None = None
    refusal: str | None = None
    """Why whoever leads does not follow what it says; None: it does, or another controller leads."""


class CatalogBase:
    """Blocking: call it from a thread. Every public method is one transaction.

    A database that was away at first is taken up by whichever call finds it there: that brings the tables up to date.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.health = Health()
        self._is_prepared = False
        self._preparing = threading.Lock()

    def prepare(self) -> None:
        """Bring the tables up to date. Raises UnavailableError when the database cannot be reached, SettingsError when
        it is newer than this program."""
        with self._preparing:
            self._prepare()

    def close(self) -> None:
        self.engine.dispose()

    def revision(self) -> int:
        """Grows with every change of tasks, models, versions, results or variants."""
        return self._read(lambda c: int(c.scalar(sa.select(revision.c.value)) or 0))

    def identity(self) -> str:
        """A UUID that this catalogue has had since its tables were made. Raises UnavailableError."""
        return self._read(lambda c: str(c.execute(sa.select(identity.c.value)).scalar_one()))

    def prove_writable(self) -> None:
        """Change nothing, in a writing transaction. Raises UnavailableError."""
        self._write(lambda c: c.execute(sa.update(revision).values(value=revision.c.value)), is_registry=False)

    def level_of(self, name: str) -> Level | None:
        """At which level a name is taken; names of unregistered models stay taken, for their history."""
        found = self._read(lambda c: c.scalar(sa.select(names.c.level).where(names.c.name == name)))
        return None if found is None else Level(found)

    def _prepare(self) -> None:
        """With the lock held."""
        if self._is_prepared:
            return
        try:
            migrate(self.engine)
        except InfaasError as error:
            self.health.read_trouble = self.health.write_trouble = error.text
            raise
        self._is_prepared = True
        self.health.read_trouble = self.health.write_trouble = None

    def _require_prepared(self) -> None:
        """One caller tries; the others do not wait for what may take as long as a network does. Raises
        UnavailableError."""
        if self._is_prepared:
            return
        if not self._preparing.acquire(blocking=False):
            raise UnavailableError(self.health.read_trouble or "the catalogue is being opened", retry_after_s=1.0)
        try:
            self._prepare()
        except SettingsError as error:
            raise UnavailableError(error.text, is_retryable=False) from error
        finally:
            self._preparing.release()

    def _read(self, work: Callable[[Connection], T]) -> T:
        self._require_prepared()
        try:
            with self.engine.connect() as connection, connection.begin():
                found = work(connection)
        except LOST as error:
            unavailable = as_unavailable(error, "read")
            self.health.read_trouble = unavailable.text
            raise unavailable from error
        self.health.read_trouble = None
        return found

    def _write(self, work: Callable[[Connection], T], *, is_registry: bool = True) -> T:
        """Run `work` in a writing transaction, again from its start when another writer took a key in between."""
        self._require_prepared()
        for attempt in range(1, _WRITE_ATTEMPTS + 1):
            try:
                with self.engine.connect().execution_options(**WRITES) as connection, connection.begin():
                    if is_registry and connection.dialect.name != "sqlite":
                        # One writer at a time, as SQLite has it: what a transaction decides on must hold at its end.
                        connection.execute(sa.select(revision.c.value).with_for_update())
                    done = work(connection)
                    if is_registry:
                        connection.execute(sa.update(revision).values(value=revision.c.value + 1))
                self.health.write_trouble = None
                return done
            except sa.exc.IntegrityError as error:
                if attempt == _WRITE_ATTEMPTS:
                    raise ConflictError(f"another writer was first: {reason_of(error)}", is_retryable=True) from error
            except LOST as error:
                if attempt == _WRITE_ATTEMPTS or not is_collision(error):
                    unavailable = as_unavailable(error, "written")
                    self.health.write_trouble = unavailable.text
                    raise unavailable from error
        raise AssertionError("unreachable")


def take_name(connection: Connection, name: str, level: Level) -> None:
    """Reserve a name. Raises ConflictError when it is taken, at whichever level."""
    taken = connection.scalar(sa.select(names.c.level).where(names.c.name == name))
    if taken is not None:
        raise ConflictError(name_taken(name, taken))
    connection.execute(sa.insert(names).values(name=name, level=level.value))


def name_taken(name: str, level: str) -> str:
    return f"the name {name!r} is already taken by a {level}; tasks, models and variants share one namespace"


def note(
    connection: Connection,
    at: float,
    actor: str,
    action: str,
    subject: str,
    details: Mapping[str, object] | None = None,
) -> None:
    """Who changed what, in the transaction that changes it."""
    connection.execute(
        sa.insert(audit).values(
            at=at, actor=actor[:255], action=action, subject=subject[:255], details=json.dumps(dict(details or {}))
        )
    )
