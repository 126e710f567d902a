"""What people are shown of the fleet. Any controller answers: all of it is in the store."""

from __future__ import annotations

from collections.abc import Sequence

from infaas.clock import iso
from infaas.control import FleetDocument, FleetPoolDocument, FleetStepDocument
from infaas.domain.fleet import FleetRecord, FleetStatus, PoolStatus
from infaas.errors import UnavailableError
from infaas_controller.fleet.ledger import FleetLedger

NO_PROVIDER = "none"


class FleetDesk:
    def __init__(self, provider: str, ledger: FleetLedger, period_s: float) -> None:
        """`provider`: as in the settings."""
        self._provider = provider
        self._ledger = ledger
        self._period_s = period_s

    async def document(self) -> FleetDocument:
        """Raises UnavailableError when the store cannot be reached, or nobody has looked at the fleet lately."""
        if self._provider == NO_PROVIDER:
            return FleetDocument(NO_PROVIDER)
        status = await self._ledger.status()
        if status is None:
            raise UnavailableError(
                "no controller has looked at the fleet lately: none leads, or it has just begun to, or its provider "
                "cannot be reached (its log says so)",
                retry_after_s=self._period_s,
            )
        return _document(status)

    async def steps(self, limit: int) -> Sequence[FleetStepDocument]:
        """Newest first. Raises UnavailableError."""
        return [_step(record) for record in (await self._ledger.steps())[:limit]]


def _document(status: FleetStatus) -> FleetDocument:
    return FleetDocument(
        provider=status.provider,
        is_dry_run=status.is_dry_run,
        at=iso(status.at),
        controller=status.controller,
        pools=tuple([_pool(pool) for pool in status.pools]),
        demand_cores=status.demand_cores,
        waiting_core_s=status.waiting_core_s,
        wanted_cores=status.wanted_cores,
        there_cores=status.there_cores,
        spent_usd_per_hour=status.spent_usd_per_hour,
        max_usd_per_hour=status.max_usd_per_hour,
    )


def _pool(pool: PoolStatus) -> FleetPoolDocument:
    return FleetPoolDocument(
        name=pool.name,
        hardware=pool.hardware,
        cores=pool.cores,
        price_usd_per_hour=pool.price_usd_per_hour,
        min_workers=pool.min_workers,
        max_workers=pool.max_workers,
        ready=pool.ready,
        starting=pool.starting,
        draining=pool.draining,
        ordered=pool.ordered,
        lost=pool.lost,
        own=pool.own,
    )


def _step(record: FleetRecord) -> FleetStepDocument:
    return FleetStepDocument(
        id=record.id,
        at=iso(record.at),
        action=record.action.value,
        cause=record.cause.value,
        pool=record.pool,
        reason=record.reason,
        worker=record.worker,
        is_dry_run=record.is_dry_run,
        controller=record.controller,
        variant=record.variant,
    )
