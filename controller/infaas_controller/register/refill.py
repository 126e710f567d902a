"""Keeping the store as the catalogue says, whatever happens to either: the leader's half of every registration.

Level-triggered: what should be is compared with what is, so a crash anywhere is made good by the next comparison.
"""

from __future__ import annotations

from collections.abc import Callable

from infaas.clock import Clock
from infaas.domain.ids import VariantName
from infaas.settings import Settings
from infaas.store.base import Lease, MetadataStore
from infaas_controller.register.publication import ANSWERS, PUBLISHED, desired_records, plan_writes
from infaas_controller.register.reading import Reading
from infaas_controller.register.switching import Loader


class Refill:
    def __init__(
        self,
        store: MetadataStore,
        service: Loader,
        settings: Settings,
        clock: Clock,
        *,
        compare_every_s: float,
    ) -> None:
        """Store and catalogue are compared this often when nothing seems to have changed."""
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

    async def step(self, reading: Reading, lease: Callable[[], Lease | None] | None) -> None:
        """Write what differs, fenced by the leadership that `lease` gives, and unload what is no longer wanted.

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

    async def _publish(self, reading: Reading, lease: Callable[[], Lease | None] | None) -> None:
        desired = desired_records(reading.registered, self._settings)
        snapshot = await self._store.list((*PUBLISHED, *ANSWERS))
        held = lease() if lease is not None else None
        for write in plan_writes(desired, snapshot.records):
            if write.value is None:
                await self._store.delete(write.kind, write.key, lease=held)
            else:
                await self._store.put(write.kind, write.key, write.value, lease=held)

    def _unload(self, unwanted: frozenset[VariantName]) -> None:
        view = self._service.view
        loaded = {i.variant for worker in view.workers.values() for i in worker.instances.values() if i.state != "GONE"}
        for variant in sorted(loaded & unwanted):
            self._service.unload(variant)
