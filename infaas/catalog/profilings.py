"""Orders to measure a variant anew, and what came of them. Every profile stays: the newest counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from infaas.catalog.base import CatalogBase, note
from infaas.catalog.claims import claimed, complete
from infaas.catalog.records import Claim, Ordered, ProfilingRow
from infaas.catalog.tables import profiles, profilings, variants, versions
from infaas.domain.build import OPEN_PROFILINGS, ProfilingState
from infaas.domain.lifecycle import BuildState
from infaas.domain.variant import Profile
from infaas.errors import ConflictError, NotFoundError, PreconditionError
from infaas.rpc.codec import encode

_IS_OPEN = profilings.c.state.in_([state.value for state in OPEN_PROFILINGS])


class ProfilingRecords(CatalogBase):
    """Part of `Catalog`."""

    def order_profiling(
        self, variant: str, budget_s: float, *, at: float, actor: str, claim: Claim | None = None
    ) -> Ordered:
        """Have a variant measured anew; an open order with the same budget is joined.

        Raises NotFoundError, PreconditionError for a variant that is retired or whose version is still being built,
        and ConflictError for an open order with another budget.
        """
        return self._write(lambda c: _order(c, variant, budget_s, at, actor, claim))

    def profiling(self, number: int) -> ProfilingRow | None:
        return self._read(lambda c: _one(c, number))

    def profilings(self, variant: str) -> Sequence[ProfilingRow]:
        """Newest first."""
        query = sa.select(profilings).where(profilings.c.variant == variant).order_by(profilings.c.id.desc())
        return self._read(lambda c: [_row(row) for row in c.execute(query)])

    def open_profilings(self) -> Sequence[ProfilingRow]:
        """Oldest first."""
        query = sa.select(profilings).where(_IS_OPEN).order_by(profilings.c.id)
        return self._read(lambda c: [_row(row) for row in c.execute(query)])

    def start_profiling(self, number: int, *, at: float) -> None:
        """A generator works on it. Nothing happens when it is not waiting."""
        where = sa.and_(profilings.c.id == number, profilings.c.state == ProfilingState.PENDING.value)
        change = {"state": ProfilingState.RUNNING.value, "updated_at": at}
        self._write(lambda c: c.execute(sa.update(profilings).where(where).values(change)), is_registry=False)

    def finish_profiling(self, number: int, profile: Profile | None, reason: str, *, at: float) -> bool:
        """Succeeded with a profile, failed without; False when it was over already.

        The accuracy is the variant's own: its bytes and the evaluation set are what they were.
        """

        def work(connection: Connection) -> bool:
            row = _one(connection, number, is_locked=True)
            if row is None or row.state not in OPEN_PROFILINGS:
                return False
            state = ProfilingState.FAILED if profile is None else ProfilingState.SUCCEEDED
            change = {"state": state.value, "reason": reason, "updated_at": at}
            connection.execute(sa.update(profilings).where(profilings.c.id == number).values(change))
            details: dict[str, object] = {"profiling": number, "reason": reason}
            if profile is not None:
                values = {"body": encode(profile).decode(), "samples": profile.samples, "created_at": at}
                connection.execute(sa.insert(profiles).values(variant=row.variant, **values))
                details["measured_at"] = profile.measured_at
            note(connection, at, "registrar", "variant.profile." + state.value.lower(), row.variant, details)
            return True

        return self._write(work)


def cancel_profilings(connection: Connection, model: str, reason: str, at: float) -> None:
    """Of every variant of a model."""
    of_model = sa.select(versions.c.id).where(versions.c.model == model)
    own = sa.select(variants.c.name).where(variants.c.version_id.in_(of_model))
    change = {"state": ProfilingState.CANCELLED.value, "reason": reason, "updated_at": at}
    connection.execute(sa.update(profilings).where(profilings.c.variant.in_(own), _IS_OPEN).values(change))


def _order(
    connection: Connection, variant: str, budget_s: float, at: float, actor: str, claim: Claim | None
) -> Ordered:
    answer = None if claim is None else claimed(connection, claim, at)
    if answer is not None:
        return Ordered(_known(connection, int(answer)), False)
    _refuse_unmeasurable(connection, variant)
    of_variant = sa.and_(profilings.c.variant == variant, _IS_OPEN)
    found = connection.execute(sa.select(profilings).where(of_variant)).first()
    if found is None:
        values = {"variant": variant, "budget_s": budget_s, "state": ProfilingState.PENDING.value, "reason": ""}
        made = connection.execute(sa.insert(profilings).values(**values, created_at=at, updated_at=at))
        key = made.inserted_primary_key
        assert key is not None
        ordered = Ordered(_known(connection, int(key[0])), True)
        details = {"profiling": ordered.profiling.id, "budget_s": budget_s}
        note(connection, at, actor, "variant.profile", variant, details)
    else:
        ordered = Ordered(_row(found), False)
        if ordered.profiling.budget_s != budget_s:
            raise ConflictError(
                f"variant {variant!r} is being measured already, for {ordered.profiling.budget_s:g} s "
                f"(profiling {ordered.profiling.id}); wait for its end"
            )
    if claim is not None:
        complete(connection, claim.key, str(ordered.profiling.id))
    return ordered


def _refuse_unmeasurable(connection: Connection, variant: str) -> None:
    query = (
        sa.select(versions.c.state, versions.c.model, versions.c.number)
        .join(variants, variants.c.version_id == versions.c.id)
        .where(variants.c.name == variant)
    )
    row = connection.execute(query).first()
    if row is None:
        raise NotFoundError(f"there is no variant {variant!r}")
    if row.state == BuildState.RETIRED.value:
        raise PreconditionError(f"variant {variant!r} is retired: its model was unregistered")
    if row.state != BuildState.READY.value:
        raise PreconditionError(
            f"variant {variant!r} belongs to version {row.number} of {row.model!r}, which is {row.state}: its build "
            "measures it; wait until the version is READY"
        )


def _one(connection: Connection, number: int, *, is_locked: bool = False) -> ProfilingRow | None:
    query = sa.select(profilings).where(profilings.c.id == number)
    row = connection.execute(query.with_for_update() if is_locked else query).first()
    return None if row is None else _row(row)


def _known(connection: Connection, number: int) -> ProfilingRow:
    row = _one(connection, number)
    if row is None:
        raise NotFoundError(f"there is no profiling {number}")
    return row


def _row(row: Row[Any]) -> ProfilingRow:
    values = dict(row._mapping)
    return ProfilingRow(state=ProfilingState(values.pop("state")), **values)
