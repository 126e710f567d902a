"""`/v1/autoscaler`: how busy variants are on their workers, how many workers there are, and what was done about it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from infaas.control import AutoscalerDocument, FleetDocument, FleetStepList, ScalingStepList
from infaas_controller.api.admin.bodies import errors
from infaas_controller.fleet.documents import FleetDesk
from infaas_controller.scalings import Scalings

_Worker = Annotated[str | None, Query(description="Of this worker alone")]
_Variant = Annotated[str | None, Query(description="Of this variant alone")]


def autoscaler_router(scalings: Scalings, fleet: FleetDesk | None) -> APIRouter:
    router = APIRouter(prefix="/autoscaler", tags=["autoscaler"])

    @router.get("", summary="How busy each variant is on each worker", responses=errors())
    async def status() -> AutoscalerDocument:
        return scalings.document()

    @router.get("/decisions", summary="The newest scaling steps, with their reasons", responses=errors())
    async def decisions(
        worker: _Worker = None, variant: _Variant = None, limit: Annotated[int, Query(ge=1, le=1000)] = 50
    ) -> ScalingStepList:
        """As this controller has heard of them since it started; also what was called for and held back."""
        asked = {"worker": worker, "variant": variant}
        matching = {key: value for key, value in asked.items() if value is not None}
        return ScalingStepList(tuple(scalings.steps(limit, matching)))

    if fleet is None:
        return router

    @router.get("/fleet", summary="How many workers there are and are wanted", responses=errors())
    async def fleet_status() -> FleetDocument:
        """As the leader's VM autoscaler saw it at its last look."""
        return await fleet.document()

    @router.get("/fleet/decisions", summary="The newest steps of the VM autoscaler", responses=errors())
    async def fleet_decisions(limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> FleetStepList:
        """Of the last seven days, whoever led; also what was called for and held back."""
        return FleetStepList(tuple(await fleet.steps(limit)))

    return router
