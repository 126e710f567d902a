"""What the fleet keeps in the store: intents, every controller's demand, the leader's last look, and past steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from infaas.domain.fleet import ControllerDemand, FleetRecord, FleetStatus, Intent
from infaas.domain.ids import ControllerId
from infaas.errors import InvalidError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode, encode
from infaas.store.base import Kind, Lease, MetadataStore, Snapshot

STEPS_KEPT_S = 7 * 86_400.0
_STATUS = "status"
Found = TypeVar("Found")
_log = get_logger(__name__)


class FleetLedger:
    """All methods raise UnavailableError; those that write under a lease raise PreconditionError once it is lost."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store

    async def intents(self) -> tuple[Sequence[Intent], Sequence[str], str]:
        """With the ids of those that cannot be read, and the epoch of the store that holds them."""
        snapshot = await self._store.list((Kind.INTENT,))
        found = _decoded(snapshot, Intent)
        readable = {intent.id for intent in found}
        return found, [record.key for record in snapshot.records if record.key not in readable], snapshot.epoch

    async def put_intent(self, intent: Intent, lease: Lease) -> None:
        await self._store.put(Kind.INTENT, intent.id, encode(intent), lease=lease)

    async def forget_intent(self, id: str, lease: Lease) -> None:
        await self._store.delete(Kind.INTENT, id, lease=lease)

    async def demands(self) -> Sequence[ControllerDemand]:
        """Of the controllers that have said something lately."""
        return await self._all(Kind.DEMAND, ControllerDemand)

    async def put_demand(self, controller: ControllerId, demand: ControllerDemand, ttl_s: float) -> None:
        await self._store.put(Kind.DEMAND, controller, encode(demand), ttl_s=ttl_s)

    async def status(self) -> FleetStatus | None:
        """None: nobody looks after the fleet now."""
        found = await self._all(Kind.FLEET, FleetStatus)
        return found[0] if found else None

    async def put_status(self, status: FleetStatus, lease: Lease, ttl_s: float) -> None:
        await self._store.put(Kind.FLEET, _STATUS, encode(status), lease=lease, ttl_s=ttl_s)

    async def steps(self) -> Sequence[FleetRecord]:
        """Newest first."""
        found = await self._all(Kind.FLEET_STEP, FleetRecord)
        return sorted(found, key=lambda step: step.at, reverse=True)

    async def put_step(self, step: FleetRecord, lease: Lease) -> None:
        await self._store.put(Kind.FLEET_STEP, step.id, encode(step), lease=lease, ttl_s=STEPS_KEPT_S)

    async def _all(self, kind: Kind, of: type[Found]) -> list[Found]:
        return _decoded(await self._store.list((kind,)), of)


def _decoded(snapshot: Snapshot, of: type[Found]) -> list[Found]:
    found = []
    for record in snapshot.records:
        try:
            found.append(decode(record.value, of))
        except InvalidError as error:
            _log.error("a record of the fleet cannot be read and is skipped", key=record.key, reason=error.text)
    return found
