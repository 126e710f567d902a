"""Keeping the store as the catalogue says, whatever happens to either: the leader's half of every registration.

Level-triggered: what should be is compared with what is, so a crash anywhere is made good by the next comparison.
"""

from __future__ import annotations

from infaas.catalog.base import Health
from infaas.clock import Clock
from infaas.domain.ids import VariantName
from infaas.observe.log import get_logger
from infaas.settings import Settings
from infaas.store.base import Lease, MetadataStore
from infaas_controller.register.publication import (
    ANSWERS,
    PUBLISHED,
    SOURCE,
    desired_records,
    plan_writes,
    refusal,
)
from infaas_controller.register.reading import Reading
from infaas_controller.register.switching import Loader

_log = get_logger(__name__)


class Refill:
    def __init__(
        self,
        store: MetadataStore,
        service: Loader,
        settings: Settings,
        clock: Clock,
        health: Health,
        *,
        compare_every_s: float,
    ) -> None:
        """Store and catalogue are compared this often when nothing seems to have changed. `health`: the catalogue's,
        where it is said when the store is kept from following it."""
        self._health = health
        self._store = store
        self._service = service
        self._settings = settings
        self._clock = clock
        self._compare_every_s = compare_every_s
        self._published: tuple[int, str] | None = None
        self._compare_at = 0.0

    def forget(self) -> None:
        """Compare at the next step, whatever was published before."""
        self._published = None

    def rest(self) -> None:
        """Somebody else leads."""
        self._health.refusal = None

    async def step(self, reading: Reading, lease: Lease | None) -> None:
        """Write what differs and unload what is no longer wanted. None: nobody else could be leading.

        Every write carries the fence of the leadership that the reading was made under, whatever became of it since.
        Raises UnavailableError, or PreconditionError when the leadership was lost.
        """
        state = (reading.revision, await self._store.epoch())
        now = self._clock.now()
        if state != self._published or now >= self._compare_at:
            self._published = None
            await self._publish(reading, lease)
            self._published = state
            self._compare_at = now + self._compare_every_s
        self._unload(reading.unwanted)

    async def _publish(self, reading: Reading, lease: Lease | None) -> None:
        snapshot = await self._store.list((*PUBLISHED, *ANSWERS))
        refused = refusal(reading.catalogue, reading.registered, snapshot.records)
        if refused is not None and self._health.refusal is None:
            _log.error("catalogue not followed", reason=refused)
        self._health.refusal = refused
        if refused is not None:
            return
        desired = desired_records(reading.registered, self._settings) | {SOURCE: reading.catalogue.encode()}
        for write in plan_writes(desired, snapshot.records):
            if write.value is None:
                await self._store.delete(write.kind, write.key, lease=lease)
            else:
                await self._store.put(write.kind, write.key, write.value, lease=lease)

    def _unload(self, unwanted: frozenset[VariantName]) -> None:
        view = self._service.view
        loaded = {i.variant for worker in view.workers.values() for i in worker.instances.values() if i.state != "GONE"}
        for variant in sorted(loaded & unwanted):
            self._service.unload(variant)
