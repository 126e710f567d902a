"""Tasks, models and their versions in the catalogue: what was registered, which version serves, which should."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from infaas.catalog.base import CatalogBase, note, take_name
from infaas.catalog.claims import is_repeated
from infaas.catalog.profilings import cancel_profilings
from infaas.catalog.records import Claim, ModelRow, Registered, Registration, TaskAppearedError, VersionRow
from infaas.catalog.tables import models, recipe_results, tasks, variants, versions
from infaas.domain.ids import Digest, ModelName, TaskName, VersionId, version_id
from infaas.domain.lifecycle import BuildState, is_allowed
from infaas.domain.query import Level
from infaas.domain.task import Task
from infaas.domain.variant import Isolation
from infaas.errors import ConflictError, NotFoundError, PreconditionError
from infaas.rpc.codec import decode, encode

_UNREGISTERED = "unregistered"
_UNREGISTERED_OPEN = "unregistered before its build was over"
"""Tells a version that came to some of its variants only from one that has them all."""


class RegistryRecords(CatalogBase):
    """Part of `Catalog`."""

    def create_task(self, task: Task, *, at: float, actor: str, claim: Claim | None = None) -> None:
        """Once per claim. Raises ConflictError when the name is taken."""

        def work(connection: Connection) -> None:
            if not is_repeated(connection, claim, at):
                _insert_task(connection, task, at, actor)

        self._write(work)

    def update_task(self, name: str, change: Callable[[Task], Task], *, at: float, actor: str) -> Task:
        """Raises NotFoundError. `change` may be called again when another writer came between."""

        def work(connection: Connection) -> Task:
            before = _task(connection, name, is_locked=True)
            if before is None:
                raise NotFoundError(f"there is no task {name!r}")
            after = change(before)
            body = encode(after).decode()
            connection.execute(sa.update(tasks).where(tasks.c.name == name).values(body=body, updated_at=at))
            note(connection, at, actor, "task.set", name, {"task": json.loads(body)})
            return after

        return self._write(work)

    def task(self, name: str) -> Task | None:
        return self._read(lambda c: _task(c, name))

    def tasks(self) -> Sequence[Task]:
        query = sa.select(tasks.c.body).order_by(tasks.c.name)
        return self._read(lambda c: [decode(body, Task) for body in c.scalars(query)])

    def model(self, name: str) -> ModelRow | None:
        """Retired models included."""
        return self._read(lambda c: _model(c, name))

    def models(self, *, with_retired: bool = False) -> Sequence[ModelRow]:
        query = sa.select(models).order_by(models.c.name)
        if not with_retired:
            query = query.where(models.c.retired_at.is_(None))
        return self._read(lambda c: [_model_row(row) for row in c.execute(query)])

    def version(self, model: str, number: int) -> VersionRow | None:
        return self._read(lambda c: _version(c, versions.c.id == version_id(model, number)))

    def versions(self, model: str | None = None) -> Sequence[VersionRow]:
        query = sa.select(versions).order_by(versions.c.model, versions.c.number)
        if model is not None:
            query = query.where(versions.c.model == model)
        return self._read(lambda c: [_version_row(row) for row in c.execute(query)])

    def find_version(self, model: str, original: Digest) -> VersionRow | None:
        where = sa.and_(versions.c.model == model, versions.c.original == original)
        return self._read(lambda c: _version(c, where))

    def register(self, registration: Registration, *, at: float, actor: str) -> Registered:
        """Create or find the version of an upload, and its model and task where they are new.

        A version that failed is to be built again; one that was unregistered comes back. Raises TaskAppearedError when
        the upload was not checked against a task that exists by now, ConflictError when a name is taken.
        """
        return self._write(lambda c: _register(c, registration, at, actor))

    def transition(self, version: VersionId, before: BuildState, after: BuildState, reason: str, *, at: float) -> None:
        """Compare-and-set of a version's state along the table. Raises PreconditionError when it is not `before`."""
        self._write(lambda c: _move(c, version, before, after, reason, at))

    def finish(self, version: VersionId, after: BuildState, reason: str, *, at: float) -> None:
        """End a build: READY or FAILED. A newest READY version becomes the one that should serve. Idempotent."""

        def work(connection: Connection) -> None:
            row = _version(connection, versions.c.id == version)
            if row is None or row.state is after or row.state is BuildState.RETIRED:
                return
            if row.state is BuildState.RECEIVED:
                _move(connection, version, BuildState.RECEIVED, BuildState.BUILDING, "", at)
            _move(connection, version, BuildState.BUILDING, after, reason, at)
            note(connection, at, "registrar", "version." + after.value.lower(), version, {"reason": reason})
            if after is BuildState.READY and _is_newest_ready(connection, row):
                _set_model(connection, row.model, wanted=row.number, reason="")

        self._write(work)

    def want(
        self,
        model: str,
        number: int | None,
        *,
        at: float,
        actor: str,
        action: str = "model.rollback",
        claim: Claim | None = None,
    ) -> None:
        """State which version should serve, once per claim; None: the newest READY one before the current.

        Raises NotFoundError, or PreconditionError when it is not READY or there is none.
        """

        def work(connection: Connection) -> None:
            if is_repeated(connection, claim, at):
                return
            wanted = _previous(connection, model) if number is None else number
            row = _version(connection, versions.c.id == version_id(model, wanted))
            if row is None:
                raise NotFoundError(f"model {model!r} has no version {wanted}")
            if row.state is not BuildState.READY:
                raise PreconditionError(f"version {wanted} of {model!r} is {row.state}, not READY: it cannot serve")
            _set_model(connection, model, wanted=wanted, reason="")
            note(connection, at, actor, action, model, {"version": wanted})

        self._write(work)

    def switch(self, model: str, number: int, *, at: float) -> bool:
        """Make the wanted version the current one; False when another one is wanted by now."""

        def work(connection: Connection) -> bool:
            where = sa.and_(models.c.name == model, models.c.wanted == number, models.c.retired_at.is_(None))
            changed = connection.execute(sa.update(models).where(where).values(current=number, reason="")).rowcount
            if changed:
                note(connection, at, "registrar", "model.switch", model, {"version": number})
            return bool(changed)

        return self._write(work)

    def explain_model(self, model: str, reason: str) -> None:
        """Keep why a model's wanted version does not serve yet."""
        self._write(lambda c: _set_model(c, model, reason=reason))

    def retire_model(self, model: str, *, at: float, actor: str) -> bool:
        """Unregister: all versions RETIRED, history kept. False when it was already. Raises NotFoundError."""

        def work(connection: Connection) -> bool:
            row = _model(connection, model)
            if row is None:
                raise NotFoundError(f"there is no model {model!r}")
            if row.retired_at is not None:
                return False
            of_model = versions.c.model == model
            is_open = versions.c.state.in_([BuildState.RECEIVED.value, BuildState.BUILDING.value])
            is_over = versions.c.state.in_([BuildState.READY.value, BuildState.FAILED.value])
            for where, reason in ((is_open, _UNREGISTERED_OPEN), (is_over, _UNREGISTERED)):
                change = {"state": BuildState.RETIRED.value, "reason": reason, "updated_at": at}
                connection.execute(sa.update(versions).where(of_model, where).values(change))
            cancel_profilings(connection, model, _UNREGISTERED, at)
            _set_model(connection, model, current=None, wanted=None, reason="", retired_at=at)
            note(connection, at, actor, "model.unregister", model)
            return True

        return self._write(work)


def _register(connection: Connection, new: Registration, at: float, actor: str) -> Registered:
    is_created = _ensure_task(connection, new, at, actor)
    model = _model(connection, new.model)
    if model is None:
        take_name(connection, new.model, Level.MODEL)
        values = {"name": new.model, "task": new.task.name, "labels": json.dumps(dict(new.labels))}
        connection.execute(sa.insert(models).values(**values, reason="", created_at=at))
    elif model.task != new.task.name:
        raise ConflictError(
            f"model {new.model!r} solves task {model.task!r}, not {new.task.name!r}; choose another name"
        )
    else:
        labels = {**model.labels, **new.labels}
        _set_model(connection, new.model, labels=json.dumps(labels), retired_at=None)
    same = sa.and_(versions.c.model == new.model, versions.c.original == new.original)
    known = _version(connection, same)
    if known is not None:
        return Registered(_revive(connection, known, new, at, actor), _is_idle(known), is_created)
    last = connection.scalar(sa.select(sa.func.max(versions.c.number)).where(versions.c.model == new.model)) or 0
    ident = version_id(new.model, last + 1)
    connection.execute(
        sa.insert(versions).values(
            id=ident, model=new.model, number=last + 1, original=new.original, state=BuildState.RECEIVED.value,
            reason="", created_at=at, updated_at=at, **_upload_values(new),
        )
    )  # fmt: skip
    note(connection, at, actor, "version.register", ident, {"original": new.original, "task": new.task.name})
    return Registered(_known(connection, ident), True, is_created)


def _ensure_task(connection: Connection, new: Registration, at: float, actor: str) -> bool:
    found = _task(connection, new.task.name)
    if found is not None:
        if not new.is_task_known:
            raise TaskAppearedError(f"task {new.task.name!r} was created in between")
        return False
    _insert_task(connection, new.task, at, actor)
    return True


def _revive(connection: Connection, known: VersionRow, new: Registration, at: float, actor: str) -> VersionRow:
    """A failed version is tried again with the new data; a retired one comes back, and is built to its end if it was
    not."""
    if known.state in (BuildState.RETIRED, BuildState.FAILED):
        undone = sa.and_(recipe_results.c.version_id == known.id, recipe_results.c.variant.is_(None))
        connection.execute(sa.delete(recipe_results).where(undone))
    if known.state is BuildState.RETIRED:
        has_variants = connection.scalar(sa.select(variants.c.name).where(variants.c.version_id == known.id).limit(1))
        is_whole = has_variants is not None and known.reason != _UNREGISTERED_OPEN
        after = BuildState.READY if is_whole else BuildState.RECEIVED
        _move(connection, known.id, BuildState.RETIRED, after, "", at)
        if after is BuildState.READY:
            _set_model(connection, known.model, wanted=known.number, reason="")
        elif has_variants is None:  # else what is there was scored on the old data, and the rest must be too
            connection.execute(sa.update(versions).where(versions.c.id == known.id).values(_upload_values(new)))
        note(connection, at, actor, "version.revive", known.id)
    elif known.state is BuildState.FAILED:
        _move(connection, known.id, BuildState.FAILED, BuildState.RECEIVED, "", at)
        connection.execute(sa.update(versions).where(versions.c.id == known.id).values(_upload_values(new)))
        note(connection, at, actor, "version.retry", known.id)
    return _known(connection, known.id)


def _is_idle(version: VersionRow) -> bool:
    return version.state in (BuildState.RETIRED, BuildState.FAILED)


def _upload_values(new: Registration) -> dict[str, Any]:
    return {
        "artifact": new.artifact,
        "evaluation": new.evaluation,
        "calibration": new.calibration,
        "metric": new.metric,
        "declared_accuracy": new.declared_accuracy,
        "fixed_batch": new.fixed_batch,
        "evaluation_rows": new.evaluation_rows,
        "warnings": json.dumps(list(new.warnings)),
        "isolation": new.isolation.value,
    }


def _move(
    connection: Connection, version: VersionId, before: BuildState, after: BuildState, reason: str, at: float
) -> None:
    if not is_allowed(before, after):
        raise PreconditionError(f"a version does not go from {before} to {after}")
    where = sa.and_(versions.c.id == version, versions.c.state == before.value)
    change = {"state": after.value, "reason": reason, "updated_at": at}
    if connection.execute(sa.update(versions).where(where).values(change)).rowcount == 0:
        raise PreconditionError(f"version {version} is not {before} any more")


def _previous(connection: Connection, model: str) -> int:
    row = _model(connection, model)
    if row is None:
        raise NotFoundError(f"there is no model {model!r}")
    where = sa.and_(versions.c.model == model, versions.c.state == BuildState.READY.value)
    ready = list(connection.scalars(sa.select(versions.c.number).where(where).order_by(versions.c.number)))
    before = [number for number in ready if row.current is not None and number < row.current]
    if not before:
        raise PreconditionError(f"model {model!r} has no READY version before {row.current}; name one of {ready}")
    return int(max(before))


def _is_newest_ready(connection: Connection, row: VersionRow) -> bool:
    where = sa.and_(versions.c.model == row.model, versions.c.state == BuildState.READY.value)
    return bool(connection.scalar(sa.select(sa.func.max(versions.c.number)).where(where)) == row.number)


def _insert_task(connection: Connection, task: Task, at: float, actor: str) -> None:
    take_name(connection, task.name, Level.TASK)
    body = encode(task).decode()
    connection.execute(sa.insert(tasks).values(name=task.name, body=body, created_at=at, updated_at=at))
    note(connection, at, actor, "task.create", task.name, {"task": json.loads(body)})


def _set_model(connection: Connection, model: str, **change: Any) -> None:
    connection.execute(sa.update(models).where(models.c.name == model).values(change))


def _task(connection: Connection, name: str, *, is_locked: bool = False) -> Task | None:
    query = sa.select(tasks.c.body).where(tasks.c.name == name)
    body = connection.scalar(query.with_for_update() if is_locked else query)
    return None if body is None else decode(body, Task)


def _model(connection: Connection, name: str) -> ModelRow | None:
    row = connection.execute(sa.select(models).where(models.c.name == name)).first()
    return None if row is None else _model_row(row)


def _model_row(row: Row[Any]) -> ModelRow:
    values = dict(row._mapping)
    return ModelRow(
        name=ModelName(values.pop("name")),
        task=TaskName(values.pop("task")),
        labels=json.loads(values.pop("labels")),
        **values,
    )


def _version(connection: Connection, where: sa.ColumnElement[bool]) -> VersionRow | None:
    row = connection.execute(sa.select(versions).where(where)).first()
    return None if row is None else _version_row(row)


def _known(connection: Connection, version: VersionId) -> VersionRow:
    row = _version(connection, versions.c.id == version)
    if row is None:
        raise NotFoundError(f"there is no version {version!r}")
    return row


def _version_row(row: Row[Any]) -> VersionRow:
    values = dict(row._mapping)
    return VersionRow(
        state=BuildState(values.pop("state")),
        warnings=tuple(json.loads(values.pop("warnings"))),
        isolation=Isolation(values.pop("isolation")),
        **values,
    )
