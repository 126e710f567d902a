"""The catalogue's tables, portable between SQLite and PostgreSQL.

Values that only the domain understands are JSON text of their dataclass; what is searched, ordered or constrained has
a column. Times are seconds since the epoch.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy import String as _AnyString
from sqlalchemy import Text as _AnyText
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

NAME_LENGTH = 128
VERSION_ID_LENGTH = 160
DIGEST_LENGTH = 64

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class _Safe(TypeDecorator[str]):
    """Text that every database takes. Callers' ids and models' error texts may hold what one of them refuses: NUL
    (PostgreSQL), half a surrogate pair (both), or more than the column is wide (PostgreSQL)."""

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value, getattr(self.impl, "length", None))


class String(_Safe):
    impl = _AnyString
    cache_ok = True


class Text(_Safe):
    impl = _AnyText
    cache_ok = True


def storable(text: str, length: int | None = None) -> str:
    """The text with what cannot be stored replaced, and cut to `length` characters."""
    whole = text.encode("utf-8", "replace").decode() if not text.isascii() else text
    return whole.replace("\0", "\N{REPLACEMENT CHARACTER}")[:length]


BIG = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column of type INTEGER."""

revision = Table(
    "revision",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""One row that grows with every change of what is registered: readers learn cheaply that they must read again."""

identity = Table(
    "identity",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("value", String(36), nullable=False),
)
"""One row that never changes: which catalogue this is, wherever its database is moved to."""

names = Table(
    "names",
    metadata,
    Column("name", String(NAME_LENGTH), primary_key=True),
    Column("level", String(16), nullable=False),
    CheckConstraint("level IN ('task', 'model', 'variant')", name="level"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("name", String(NAME_LENGTH), ForeignKey("names.name"), primary_key=True),
    Column("body", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("name", String(NAME_LENGTH), ForeignKey("names.name"), primary_key=True),
    Column("task", String(NAME_LENGTH), ForeignKey("tasks.name"), nullable=False, index=True),
    Column("current", Integer),
    Column("wanted", Integer),
    Column("labels", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("retired_at", Float),
)

versions = Table(
    "versions",
    metadata,
    Column("id", String(VERSION_ID_LENGTH), primary_key=True),
    Column("model", String(NAME_LENGTH), ForeignKey("models.name"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("original", String(DIGEST_LENGTH), nullable=False),
    Column("artifact", String(DIGEST_LENGTH), nullable=False),
    Column("evaluation", String(DIGEST_LENGTH)),
    Column("calibration", String(DIGEST_LENGTH)),
    Column("metric", String(NAME_LENGTH), nullable=False),
    Column("declared_accuracy", Float),
    Column("fixed_batch", Integer),
    Column("evaluation_rows", Integer),
    Column("warnings", Text, nullable=False),
    Column("isolation", String(16), nullable=False, server_default="thread"),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("model", "number"),
    UniqueConstraint("model", "original"),
)

recipe_results = Table(
    "recipe_results",
    metadata,
    Column("version_id", String(VERSION_ID_LENGTH), ForeignKey("versions.id"), primary_key=True),
    Column("recipe", String(NAME_LENGTH), primary_key=True),
    Column("outcome", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("variant", String(NAME_LENGTH)),
    Column("max_abs_error", Float),
    Column("seconds", Float, nullable=False),
    Column("created_at", Float, nullable=False),
)

variants = Table(
    "variants",
    metadata,
    Column("name", String(NAME_LENGTH), ForeignKey("names.name"), primary_key=True),
    Column("version_id", String(VERSION_ID_LENGTH), ForeignKey("versions.id"), nullable=False, index=True),
    Column("recipe", String(NAME_LENGTH), nullable=False),
    Column("body", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("version_id", "recipe"),
)

profiles = Table(
    "profiles",
    metadata,
    Column("id", BIG, primary_key=True, autoincrement=True),
    Column("variant", String(NAME_LENGTH), ForeignKey("variants.name"), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("samples", String(DIGEST_LENGTH)),
    Column("created_at", Float, nullable=False),
)
"""Every measurement is kept; the newest counts."""

_IS_OPEN = text("state IN ('Pending', 'Running')")
profilings = Table(
    "profilings",
    metadata,
    Column("id", BIG, primary_key=True, autoincrement=True),
    Column("variant", String(NAME_LENGTH), ForeignKey("variants.name"), nullable=False, index=True),
    Column("budget_s", Float, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index("uq_profilings_open", "variant", unique=True, sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN),
)
"""Orders to measure a variant anew: at most one open one of each."""

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(DIGEST_LENGTH), nullable=False),
    Column("answer", Text, nullable=False),
    Column("created_at", Float, nullable=False, index=True),
    Column("state", String(16), nullable=False, server_default="claimed"),
)
"""`claimed`: the request began and may not have ended; `done`: it was carried out, and this is its answer."""

decisions = Table(
    "decisions",
    metadata,
    Column("id", String(255), primary_key=True),
    Column("request_id", String(255), nullable=False, index=True),
    Column("at", String(40), nullable=False, index=True),
    Column("outcome", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("candidates", LargeBinary),
)
"""`candidates`: JSON, compressed, because it is many times as long as the rest and says much the same each time."""

audit = Table(
    "audit",
    metadata,
    Column("id", BIG, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", String(255), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(255), nullable=False),
    Column("details", Text, nullable=False),
    Index(None, "subject", "at"),
)
