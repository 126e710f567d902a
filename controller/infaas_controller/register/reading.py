"""The registrar's reading of the catalogue: everything at one revision, read again only when it changed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from infaas.catalog.catalog import Catalog
from infaas.domain.ids import VariantName
from infaas.domain.variant import VariantState
from infaas_controller.register.publication import OPEN, Registered


@dataclass(frozen=True, slots=True)
class Reading:
    revision: int
    catalogue: str
    """Which catalogue it is."""
    registered: Registered
    unwanted: frozenset[VariantName]
    """Variants that must not stay loaded: retired or disabled."""


class Reader:
    """Shared by the registrar's loops and calls, on one event loop."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._last: Reading | None = None

    async def read(self) -> Reading:
        """Raises UnavailableError when the catalogue is lost."""
        last = self._last
        revision = await asyncio.to_thread(self._catalog.revision)
        if last is not None and last.revision == revision:
            return last
        reading = await asyncio.to_thread(self._read_all, revision)
        if self._last is None or self._last.revision <= reading.revision:
            self._last = reading
        return reading

    def _read_all(self, revision: int) -> Reading:
        """The revision is as old as the rest or older, so a change in between is noticed the next time."""
        versions = self._catalog.versions()
        made = self._catalog.variants()
        done = {v.id: tuple(r.recipe for r in self._catalog.results(v.id)) for v in versions if v.state in OPEN}
        live = [variant for variant in made if variant.state is not VariantState.RETIRED]
        registered = Registered(
            self._catalog.tasks(), self._catalog.models(), versions, live, done, self._catalog.open_profilings()
        )
        unwanted = frozenset(variant.name for variant in made if variant.state is not VariantState.READY)
        return Reading(revision, self._catalog.identity(), registered, unwanted)
