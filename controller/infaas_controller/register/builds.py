"""Builds as callers see them: where one stands, following it, and clearing what an earlier one left in the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from infaas.catalog.catalog import Catalog
from infaas.catalog.records import VersionRow
from infaas.control import BuildDocument
from infaas.domain.build import BuildProgress
from infaas.domain.lifecycle import BuildState
from infaas.errors import NotFoundError, PreconditionError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode
from infaas.store.base import Kind, MetadataStore, Record
from infaas_controller.register.publication import ANSWERS, OPEN
from infaas_controller.register.signals import changes

_log = get_logger(__name__)


class Builds:
    """Any controller may ask; nothing here needs the leadership."""

    def __init__(self, catalog: Catalog, store: MetadataStore) -> None:
        self._catalog = catalog
        self._store = store

    async def document(self, model: str, number: int) -> BuildDocument:
        """Where a version's build stands. Without the store, its state alone. Raises NotFoundError."""
        version = await asyncio.to_thread(known_version, self._catalog, model, number)
        progress: tuple[BuildProgress, ...] = ()
        holder = None
        try:
            records = (await self._store.list((Kind.PROGRESS,))).records
            holder = (await self._store.holders()).get(f"build/{version.id}")
        except UnavailableError as error:
            _log.warning("no progress to show", version=version.id, reason=error.text)
        else:
            own = [decode(record.value, BuildProgress) for record in records if _build_of(record) == version.id]
            progress = tuple(sorted(own, key=lambda p: p.recipe))
        return BuildDocument(model, number, version.state, version.reason, holder, progress)

    def watch(self, model: str, number: int) -> AsyncIterator[BuildDocument | None]:
        """The document now and after every change, until the build is over; None now and then when nothing happens.

        Raises NotFoundError. While the store is lost, the documents carry no progress.
        """
        return changes(
            self._store,
            lambda: self.document(model, number),
            lambda document: BuildState(document.state) not in OPEN,
            name=f"watch-build-{model}-{number}",
        )

    async def clear(self, version: VersionRow) -> None:
        """Remove what an earlier build of a version left: its last words must not end the next one.

        Whoever takes an upload in calls this, leader or not. So it removes only what was there while the version was
        still seen to be closed, and nothing that was written since: another caller may have begun the next build.
        """
        leftovers = [
            record for record in (await self._store.list((Kind.BUILD, *ANSWERS))).records
            if _build_of(record) == version.id
        ]  # fmt: skip
        now = await asyncio.to_thread(known_version, self._catalog, version.model, version.number)
        if now.state in OPEN:
            return
        for record in leftovers:
            try:
                await self._store.delete(record.kind, record.key, expect=record.version)
            except PreconditionError:
                _log.info("not a leftover: written since", kind=record.kind, key=record.key)


def known_version(catalog: Catalog, model: str, number: int) -> VersionRow:
    """Raises NotFoundError. Blocking."""
    version = catalog.version(model, number)
    if version is None:
        if catalog.model(model) is None:
            raise NotFoundError(f"there is no model {model!r}")
        raise NotFoundError(f"model {model!r} has no version {number}")
    return version


def _build_of(record: Record) -> str:
    return record.key if record.kind is Kind.BUILD else record.key.rpartition("/")[0]
