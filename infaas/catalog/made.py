"""What builds made: results of recipes, variants, and every profile that was ever measured of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from infaas.catalog.base import CatalogBase, note, take_name
from infaas.catalog.records import ResultRow
from infaas.catalog.tables import profiles, recipe_results, variants, versions
from infaas.domain.build import BuildResult
from infaas.domain.ids import Digest, InstanceId, VersionId
from infaas.domain.lifecycle import BuildState
from infaas.domain.query import Level
from infaas.domain.variant import Isolation, Profile, Variant, VariantState
from infaas.errors import ConflictError, InvalidError, NotFoundError, PreconditionError
from infaas.rpc.codec import decode, encode


class MadeRecords(CatalogBase):
    """Part of `Catalog`."""

    def record_result(self, version: VersionId, result: BuildResult, *, at: float) -> bool:
        """Copy one recipe's outcome; False when it is known already. A variant whose name is taken becomes a failure.

        Raises NotFoundError when there is no such version.
        """
        return self._write(lambda c: _record(c, version, result, at))

    def results(self, version: VersionId) -> Sequence[ResultRow]:
        columns = [recipe_results.c[name] for name in _RESULT_COLUMNS]
        query = sa.select(*columns).where(recipe_results.c.version_id == version).order_by(recipe_results.c.recipe)
        return self._read(lambda c: [ResultRow(**row._mapping) for row in c.execute(query)])

    def variant(self, name: str) -> Variant | None:
        """With its newest profile; RETIRED when its version is."""
        found = self._read(lambda c: _variants(c, variants.c.name == name))
        return found[0] if found else None

    def variants(self, *, states: Collection[BuildState] | None = None) -> Sequence[Variant]:
        """Variants by name, of versions in some states (READY and RETIRED when none are given)."""
        wanted = (BuildState.READY, BuildState.RETIRED) if states is None else states
        where = versions.c.state.in_([state.value for state in wanted])
        return self._read(lambda c: _variants(c, where))

    def variants_of(self, version: VersionId) -> Sequence[Variant]:
        """Whatever the version's state: also what an unfinished build has made so far."""
        return self._read(lambda c: _variants(c, variants.c.version_id == version))

    def set_variant_state(self, name: str, state: VariantState, reason: str, *, at: float, actor: str) -> bool:
        """Disable or enable; False when it is so already. Raises NotFoundError, PreconditionError for a retired one."""

        def work(connection: Connection) -> bool:
            found = _variants(connection, variants.c.name == name)
            if not found:
                raise NotFoundError(f"there is no variant {name!r}")
            if found[0].state is VariantState.RETIRED:
                raise PreconditionError(f"variant {name!r} is retired: its model was unregistered")
            if found[0].state is state:
                return False
            change = {"state": state.value, "reason": reason}
            connection.execute(sa.update(variants).where(variants.c.name == name).values(change))
            note(connection, at, actor, "variant." + state.value.lower(), name, {"reason": reason})
            return True

        return self._write(work)

    def isolate_variant(
        self,
        name: str,
        isolation: Isolation,
        reason: str,
        *,
        at: float,
        actor: str,
        pardoned: tuple[InstanceId, ...] | None = None,
        death: InstanceId | None = None,
    ) -> bool:
        """Say where its instances run from now on, and whose deaths do not count any more (None: as before); False
        when all of it is so already, or when the `death` that it is said for was pardoned since it was seen. Raises
        NotFoundError, and InvalidError for a process of what runs on a server."""

        def work(connection: Connection) -> bool:
            where = variants.c.name == name
            body = connection.scalar(sa.select(variants.c.body).where(where).with_for_update())
            if body is None:
                raise NotFoundError(f"there is no variant {name!r}")
            known = decode(body, Variant)
            if isolation is Isolation.PROCESS and known.runtime.is_elsewhere:
                raise InvalidError(
                    f"variant {name!r} runs on a {known.runtime.value} server, not in a worker: it can crash no "
                    "process of ours and needs none of its own"
                )
            if death is not None and death in known.pardoned:
                return False
            dead = known.pardoned if pardoned is None else pardoned
            if known.isolation is isolation and set(dead) <= set(known.pardoned):
                return False
            changed = replace(known, isolation=isolation, isolation_reason=reason, pardoned=dead)
            connection.execute(sa.update(variants).where(where).values(body=encode(changed).decode()))
            note(connection, at, actor, "variant.isolate", name, {"isolation": isolation.value, "reason": reason})
            return True

        return self._write(work)

    def profiles(self, variant: str) -> Sequence[Profile]:
        """Every profile measured of a variant, oldest first."""
        query = sa.select(profiles.c.body).where(profiles.c.variant == variant).order_by(profiles.c.id)
        return self._read(lambda c: [decode(body, Profile) for body in c.scalars(query)])

    def named_artifacts(self) -> frozenset[Digest]:
        """Every artifact that a row names: files of versions, what variants run, raw samples."""
        columns = (versions.c.original, versions.c.artifact, versions.c.evaluation, versions.c.calibration)

        def work(connection: Connection) -> frozenset[Digest]:
            found = {digest for row in connection.execute(sa.select(*columns)) for digest in row if digest}
            found |= set(connection.scalars(sa.select(profiles.c.samples).where(profiles.c.samples.is_not(None))))
            found |= {decode(body, Variant).artifact for body in connection.scalars(sa.select(variants.c.body))}
            return frozenset(Digest(digest) for digest in found)

        return self._read(work)


_RESULT_COLUMNS = ("recipe", "outcome", "reason", "variant", "max_abs_error", "seconds")


def _record(connection: Connection, version: VersionId, result: BuildResult, at: float) -> bool:
    if connection.scalar(sa.select(versions.c.id).where(versions.c.id == version)) is None:
        raise NotFoundError(f"there is no version {version!r}")
    same = sa.and_(recipe_results.c.version_id == version, recipe_results.c.recipe == result.recipe)
    known = connection.execute(sa.select(recipe_results).where(same)).first()
    if known is not None and (known.outcome == "made" or known.outcome == result.outcome):
        return False
    outcome, reason, name = result.outcome, result.reason, None
    if result.variant is not None and result.outcome == "made":
        try:
            _insert_variant(connection, version, result.variant, at)
            name = result.variant.name
        except ConflictError as error:
            outcome, reason = "failed", error.text
    connection.execute(sa.delete(recipe_results).where(same))
    connection.execute(
        sa.insert(recipe_results).values(
            version_id=version, recipe=result.recipe, outcome=outcome, reason=reason, variant=name,
            max_abs_error=result.max_abs_error, seconds=result.seconds, created_at=at,
        )
    )  # fmt: skip
    return True


def _insert_variant(connection: Connection, version: VersionId, variant: Variant, at: float) -> None:
    query = sa.select(variants.c.version_id, variants.c.body).where(variants.c.name == variant.name)
    known = connection.execute(query).first()
    if known is not None and known.version_id == version:
        before = decode(known.body, Variant)  # what its instances did is not undone by making it again
        variant = replace(
            variant,
            isolation=before.isolation,
            isolation_reason=before.isolation_reason,
            pardoned=before.pardoned,
        )
    else:
        asked = connection.scalar(sa.select(versions.c.isolation).where(versions.c.id == version))
        variant = replace(variant, isolation=Isolation(asked or variant.isolation))
    body = encode(replace(variant, profile=None)).decode()
    if known is not None and known.version_id == version:
        connection.execute(sa.update(variants).where(variants.c.name == variant.name).values(body=body))
    else:
        take_name(connection, variant.name, Level.VARIANT)
        values = {"name": variant.name, "version_id": version, "recipe": variant.recipe, "body": body}
        state = {"state": variant.state.value, "reason": variant.reason, "created_at": at}
        connection.execute(sa.insert(variants).values(**values, **state))
    if variant.profile is not None:
        measured = {"body": encode(variant.profile).decode(), "samples": variant.profile.samples, "created_at": at}
        connection.execute(sa.insert(profiles).values(variant=variant.name, **measured))


def _variants(connection: Connection, where: sa.ColumnElement[bool]) -> list[Variant]:
    newest = sa.select(sa.func.max(profiles.c.id).label("id")).group_by(profiles.c.variant).subquery()
    current = sa.select(profiles.c.variant, profiles.c.body.label("profile")).join(newest, profiles.c.id == newest.c.id)
    latest = current.subquery()
    query = (
        sa.select(
            variants.c.body, variants.c.state, variants.c.reason, versions.c.state.label("build"), latest.c.profile
        )
        .join(versions, versions.c.id == variants.c.version_id)
        .outerjoin(latest, latest.c.variant == variants.c.name)
        .where(where)
        .order_by(variants.c.name)
    )
    return [_variant(row) for row in connection.execute(query)]


def _variant(row: Row[*tuple[Any, ...]]) -> Variant:
    profile = None if row.profile is None else decode(row.profile, Profile)
    state, reason = VariantState(row.state), row.reason
    if row.build == BuildState.RETIRED.value:
        state, reason = VariantState.RETIRED, "its model was unregistered"
    return replace(decode(row.body, Variant), profile=profile, state=state, reason=reason)
