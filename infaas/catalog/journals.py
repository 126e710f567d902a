"""Decisions, audit and idempotency keys: the catalogue's memory of who asked for what and what became of it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from infaas.catalog.base import CatalogBase
from infaas.catalog.claims import claimed, complete
from infaas.catalog.records import AuditRow, Claim
from infaas.catalog.tables import audit, decisions
from infaas.domain.query import Candidate, Decision
from infaas.rpc.codec import decode, encode


class JournalRecords(CatalogBase):
    """Part of `Catalog`."""

    def claim_key(self, key: str, fingerprint: str, *, at: float) -> str | None:
        """The answer kept under an idempotency key; None when the request is still to be carried out.

        The key is claimed before the work, so that it can never stand for two different requests. A claim whose
        request never came to its end (it failed, or its process died) lets the same request run again. Raises
        ConflictError when the key was used for another request within a day.
        """
        return self._write(lambda c: claimed(c, Claim(key, fingerprint), at), is_registry=False)

    def keep_answer(self, key: str, answer: str) -> None:
        """The request of a claimed key was carried out."""
        self._write(lambda c: complete(c, key, answer), is_registry=False)

    def write_decisions(self, batch: Sequence[Decision]) -> None:
        """Journal decisions; one that is there already is replaced by what is known of it now."""
        rows: dict[str, dict[str, Any]] = {
            decision.id: {
                "id": decision.id,
                "request_id": decision.request_id[:255],
                "at": decision.at,
                "outcome": decision.outcome,
                "body": encode(replace(decision, candidates=())).decode(),
                "candidates": packed(decision.candidates),
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
        query = sa.select(*_DECISION).where(where).order_by(decisions.c.at.desc()).limit(1)
        row = self._read(lambda c: c.execute(query).first())
        return None if row is None else _decision(row)

    def recent_decisions(self, limit: int) -> Sequence[Decision]:
        """Newest first."""
        query = sa.select(*_DECISION).order_by(decisions.c.at.desc(), decisions.c.id).limit(limit)
        return [_decision(row) for row in self._read(lambda c: c.execute(query).all())]

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


_DECISION = (decisions.c.body, decisions.c.candidates)
_COMPRESSION = 1
"""The quickest: candidates of one decision resemble each other so much that more effort gains little."""


def packed(candidates: Sequence[Candidate]) -> bytes | None:
    return zlib.compress(encode(candidates), _COMPRESSION) if candidates else None


def _decision(row: Row[*tuple[Any, ...]]) -> Decision:
    found = decode(row.body, Decision)
    if row.candidates is None:
        return found
    return replace(found, candidates=decode(zlib.decompress(row.candidates), tuple[Candidate, ...]))
