"""The worker inside the controller's process: a `Worker` like any other, on somebody else's loop."""

from __future__ import annotations

import asyncio

from infaas.clock import Clock
from infaas.rpc.hop.endpoint import Handler
from infaas.rpc.hop.inner import InnerEnd
from infaas.settings import Settings
from infaas.store.opening import open_store
from infaas_worker.main import Worker
from infaas_worker.registration import refuse_namesake


class Inline:
    """Entry point `worker` of the group `infaas.inline`; implements `infaas.inline.InlineWorker`."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Raises SettingsError when it cannot live on this machine."""
        self._settings = settings
        self._worker = Worker(settings, clock, has_process=False)

    @property
    def address(self) -> str:
        return self._worker.place.record.address

    def meet(self, handler: Handler) -> InnerEnd:
        return self._worker.meet(handler)

    async def run(self, stop: asyncio.Event) -> int | None:
        """Raises ConflictError while a worker somewhere else goes by the same name."""
        store = open_store(self._settings)
        try:
            await refuse_namesake(store, self._worker.place.record)
        finally:
            await store.close()
        ending = await self._worker.run(stop)
        return ending.exit_status
