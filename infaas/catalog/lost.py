"""What an error of the database means: that the catalogue is not there now, for which reason, and whether to wait.

A caller reads the reason, so it is one line in words, without the statement and its values.
"""

from __future__ import annotations

import sqlalchemy as sa

from infaas.errors import UnavailableError

LOST = (sa.exc.DatabaseError, sa.exc.InterfaceError, sa.exc.TimeoutError)
"""Among them are mistakes in statements and values, which `as_unavailable` hands on."""
_MISTAKES = (sa.exc.ProgrammingError, sa.exc.DataError, sa.exc.IntegrityError, sa.exc.NotSupportedError)
_REMEDIES = (
    ("database is locked", "another process holds its write lock"),
    ("database or disk is full", "free some space on its disk"),
    ("No space left on device", "free some space on its disk"),
    ("disk I/O error", "its disk fails or is full"),
    ("readonly database", "its file or folder is not writable"),
    ("read-only transaction", "the server is a replica or set to read only"),
    ("malformed", "the file is damaged: restore it from a backup"),
    ("file is not a database", "the file is damaged: restore it from a backup"),
    ("QueuePool limit", "all connections are busy"),
    ("lock timeout", "another transaction holds a lock"),
    ("statement timeout", "the server is too slow"),
)
_FINAL = ("malformed", "file is not a database", "password authentication failed", "no password supplied")
_COLLISIONS = frozenset({"40001", "40P01"})
"""SQLSTATEs of transactions that PostgreSQL ended for another one's sake: serialisation failure and deadlock."""


def as_unavailable(error: sa.exc.SQLAlchemyError, what: str) -> UnavailableError:
    """`what` could not be done: `read`, `written`, `opened`. Raises the error itself when it is a mistake of ours."""
    if isinstance(error, _MISTAKES) and not _is_missing_table(error):
        raise error
    reason = reason_of(error)
    advice = next((words for known, words in _REMEDIES if known in reason), None)
    text = f"the catalogue cannot be {what}: {reason}" + (f" ({advice})" if advice else "")
    is_final = any(words in reason for words in _FINAL)
    return UnavailableError(text, is_retryable=not is_final, retry_after_s=None if is_final else 1.0)


def reason_of(error: sa.exc.SQLAlchemyError) -> str:
    """What the driver said, on one line; never the statement or its values."""
    said = str(getattr(error, "orig", None) or error).split("\n[SQL:", 1)[0]
    return " ".join(said.split()) or type(error).__name__


def is_collision(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether the same transaction may succeed when it is run again at once."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) in _COLLISIONS


def _is_missing_table(error: sa.exc.SQLAlchemyError) -> bool:
    """A database that was emptied under us: PostgreSQL calls that a mistake, SQLite does not."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) in ("42P01", "3F000")
