"""Profilings as callers see them: ordering one, where it stands, following it, and all that was ever measured.

A variant in service is measured anew when its machine, its neighbours or its runtime changed. An order is an intention
in the catalogue; the registrar's loops publish it, a generator carries it out, and the new profile takes the place of
the old one, which stays as history.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from infaas.catalog.catalog import Catalog
from infaas.catalog.records import Claim, ProfilingRow
from infaas.clock import Clock, iso
from infaas.control import ProfilingDocument
from infaas.domain.build import OPEN_PROFILINGS, BuildProgress, ProfilingState, profiling_build
from infaas.domain.variant import Profile, Runtime
from infaas.errors import InvalidError, NotFoundError, PreconditionError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode
from infaas.settings import Settings
from infaas.store.base import Kind, MetadataStore
from infaas_controller.register.options import fingerprint
from infaas_controller.register.signals import changes

MAX_BUDGET_S = 3600.0
_MEASURED_BY_GENERATOR = frozenset({Runtime.ONNXRUNTIME, Runtime.TRITON})
"""Runtimes that the generator's profiler can run by itself."""
_log = get_logger(__name__)


class Profilings:
    """Any controller may ask; nothing here needs the leadership."""

    def __init__(self, catalog: Catalog, store: MetadataStore, settings: Settings, clock: Clock) -> None:
        self._catalog = catalog
        self._store = store
        self._settings = settings
        self._clock = clock

    async def order(
        self, variant: str, budget_s: float | None, idempotency_key: str | None, actor: str
    ) -> ProfilingDocument:
        """Raises NotFoundError, InvalidError, PreconditionError, ConflictError."""
        budget = self._settings.generator.profile_budget_s if budget_s is None else budget_s
        if not 0 < budget <= MAX_BUDGET_S:
            raise InvalidError(f"a budget of {budget:g} s cannot be; it must be above 0 and at most {MAX_BUDGET_S:g} s")
        said = fingerprint("variant.profile", [variant, budget])
        claim = None if idempotency_key is None else Claim(idempotency_key, said)

        def work() -> ProfilingRow:
            self._refuse_foreign(variant)
            order = self._catalog.order_profiling
            return order(variant, budget, at=self._clock.wall(), actor=actor, claim=claim).profiling

        return await self._document_of(await asyncio.to_thread(work))

    async def document(self, variant: str, number: int) -> ProfilingDocument:
        """Where one stands. Without the store, its state alone. Raises NotFoundError."""
        return await self._document_of(await asyncio.to_thread(self._known, variant, number))

    async def documents(self, variant: str) -> Sequence[ProfilingDocument]:
        """All that were ever ordered, newest first. Raises NotFoundError."""

        def work() -> Sequence[ProfilingRow]:
            self._refuse_unknown(variant)
            return self._catalog.profilings(variant)

        return [_document(row, None, None) for row in await asyncio.to_thread(work)]

    async def profiles(self, variant: str) -> Sequence[Profile]:
        """Every profile that was measured of a variant, newest first; the first counts. Raises NotFoundError."""

        def work() -> Sequence[Profile]:
            self._refuse_unknown(variant)
            return self._catalog.profiles(variant)

        return (await asyncio.to_thread(work))[::-1]

    def watch(self, variant: str, number: int) -> AsyncIterator[ProfilingDocument | None]:
        """The document now and after every change, until it is over; None now and then when nothing happens."""
        return changes(
            self._store,
            lambda: self.document(variant, number),
            lambda document: ProfilingState(document.state) not in OPEN_PROFILINGS,
            name=f"watch-profiling-{number}",
        )

    async def _document_of(self, row: ProfilingRow) -> ProfilingDocument:
        if row.state not in OPEN_PROFILINGS:
            return _document(row, None, None)
        build = profiling_build(row.id)
        try:
            records = (await self._store.list((Kind.PROGRESS,))).records
            holder = (await self._store.holders()).get(f"build/{build}")
        except UnavailableError as error:
            _log.warning("no progress to show", profiling=row.id, reason=error.text)
            return _document(row, None, None)
        own = [decode(r.value, BuildProgress) for r in records if r.key.rpartition("/")[0] == build]
        return _document(row, holder, max(own, key=lambda progress: progress.at, default=None))

    def _known(self, variant: str, number: int) -> ProfilingRow:
        row = self._catalog.profiling(number)
        if row is None or row.variant != variant:
            self._refuse_unknown(variant)
            raise NotFoundError(f"variant {variant!r} has no profiling {number}")
        return row

    def _refuse_unknown(self, variant: str) -> None:
        if self._catalog.variant(variant) is None:
            raise NotFoundError(f"there is no variant {variant!r}")

    def _refuse_foreign(self, name: str) -> None:
        variant = self._catalog.variant(name)
        if variant is not None and variant.runtime not in _MEASURED_BY_GENERATOR:
            raise PreconditionError(
                f"variant {name!r} runs on {variant.runtime.value}, which the generator cannot run by itself"
            )


def _document(row: ProfilingRow, holder: str | None, progress: BuildProgress | None) -> ProfilingDocument:
    return ProfilingDocument(
        id=row.id,
        variant=row.variant,
        state=row.state,
        reason=row.reason,
        budget_s=row.budget_s,
        created_at=iso(row.created_at),
        updated_at=iso(row.updated_at),
        location=f"/v1/variants/{row.variant}/profilings/{row.id}",
        holder=holder,
        progress=progress,
    )
