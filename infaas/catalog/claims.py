"""Idempotency keys, inside the transaction of the write they guard.

Claim and completion are two states of one row. Where a request is one transaction, both happen in it, so that no crash
can fall between the effect and the note that it happened. Where it is more (an upload), the claim comes first and the
answer last; what is repeated in between must be idempotent by itself.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from infaas.catalog.records import Claim
from infaas.catalog.tables import idempotency_keys
from infaas.errors import ConflictError

IDEMPOTENCY_TTL_S = 24 * 3600.0
_CLAIMED, _DONE = "claimed", "done"


def claimed(connection: Connection, claim: Claim, at: float) -> str | None:
    """The answer of the request that a key stands for; None when it is to be carried out, for the first time or because
    it never came to its end. Raises ConflictError when the key stands for another request."""
    expired = idempotency_keys.c.created_at < at - IDEMPOTENCY_TTL_S
    connection.execute(sa.delete(idempotency_keys).where(expired))
    known = sa.select(idempotency_keys).where(idempotency_keys.c.key == claim.key).with_for_update()
    row = connection.execute(known).first()
    if row is None:
        values = {"key": claim.key, "fingerprint": claim.fingerprint, "answer": "", "created_at": at}
        connection.execute(sa.insert(idempotency_keys).values(**values, state=_CLAIMED))
        return None
    if row.fingerprint != claim.fingerprint:
        raise ConflictError(f"Idempotency-Key {claim.key!r} was used for another request; use a new key")
    return str(row.answer) if row.state == _DONE else None


def complete(connection: Connection, key: str, answer: str) -> None:
    update = sa.update(idempotency_keys).where(idempotency_keys.c.key == key)
    connection.execute(update.values(answer=answer, state=_DONE))


def is_repeated(connection: Connection, claim: Claim | None, at: float) -> bool:
    """Whether a request that is one transaction was carried out before; else it counts as carried out with this one."""
    if claim is None:
        return False
    if claimed(connection, claim, at) is not None:
        return True
    complete(connection, claim.key, "")
    return False
