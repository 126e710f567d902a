"""Decisions, audit and idempotency keys: the catalogue's memory of who asked for what and what became of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from infaas.catalog.base import CatalogBase
from infaas.catalog.records import AuditRow
from infaas.catalog.tables import audit, decisions, idempotency_keys
from infaas.domain.query import Decision
from infaas.errors import ConflictError
from infaas.rpc.codec import decode, encode

IDEMPOTENCY_TTL_S = 24 * 3600.0


class JournalRecords(CatalogBase):
    """Part of `Catalog`."""

    def claim_key(self, key: str, fingerprint: str, *, at: float) -> str | None:
        """The answer kept under an idempotency key; None when the request is still to be carried out.

        The key is claimed before the work, so that it can never stand for two different requests. Raises
        ConflictError when it was used for another request within a day.
        """

        def work(connection: Connection) -> str | None:
            expired = idempotency_keys.c.created_at < at - IDEMPOTENCY_TTL_S
            connection.execute(sa.delete(idempotency_keys).where(expired))
            row = connection.execute(sa.select(idempotency_keys).where(idempotency_keys.c.key == key)).first()
            if row is None:
                values = {"key": key, "fingerprint": fingerprint, "answer": "", "created_at": at}
                connection.execute(sa.insert(idempotency_keys).values(values))
                return None
            if row.fingerprint != fingerprint:
                raise ConflictError(f"Idempotency-Key {key!r} was used for another request; use a new key")
            return str(row.answer) or None

        return self._write(work, is_registry=False)

    def keep_answer(self, key: str, answer: str) -> None:
        update = sa.update(idempotency_keys).where(idempotency_keys.c.key == key).values(answer=answer)
        self._write(lambda c: c.execute(update), is_registry=False)

    def write_decisions(self, batch: Sequence[Decision]) -> None:
        """Journal decisions; one that is there already is replaced by what is known of it now."""
        rows: dict[str, dict[str, Any]] = {
            decision.id: {
                "id": decision.id,
                "request_id": decision.request_id[:255],
                "at": decision.at,
                "outcome": decision.outcome,
                "body": encode(decision).decode(),
            }
            for decision in batch
        }
        if not rows:
            return

        def work(connection: Connection) -> None:
            connection.execute(sa.delete(decisions).where(decisions.c.id.in_(list(rows))))
            connection.execute(sa.insert(decisions), list(rows.values()))

        self._write(work, is_registry=False)

    def decision(self, key: str) -> Decision | None:
        """By decision id, or the newest by request id."""
        where = sa.or_(decisions.c.id == key, decisions.c.request_id == key)
        query = sa.select(decisions.c.body).where(where).order_by(decisions.c.at.desc()).limit(1)
        body = self._read(lambda c: c.scalar(query))
        return None if body is None else decode(body, Decision)

    def recent_decisions(self, limit: int) -> Sequence[Decision]:
        """Newest first."""
        query = sa.select(decisions.c.body).order_by(decisions.c.at.desc(), decisions.c.id).limit(limit)
        return self._read(lambda c: [decode(body, Decision) for body in c.scalars(query)])

    def prune_decisions(self, keep: int) -> int:
        """Forget all but the newest `keep`; returns how many went."""
        oldest = sa.select(decisions.c.at).order_by(decisions.c.at.desc()).offset(keep).limit(1)

        def work(connection: Connection) -> int:
            bound = connection.scalar(oldest)
            if bound is None:
                return 0
            return connection.execute(sa.delete(decisions).where(decisions.c.at <= bound)).rowcount

        return self._write(work, is_registry=False)

    def audit_log(self, *, subject: str | None = None, limit: int = 100) -> Sequence[AuditRow]:
        """Newest first."""
        query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
        if subject is not None:
            query = query.where(audit.c.subject == subject)

        def work(connection: Connection) -> list[AuditRow]:
            rows = connection.execute(query)
            return [AuditRow(r.at, r.actor, r.action, r.subject, json.loads(r.details)) for r in rows]

        return self._read(work)
