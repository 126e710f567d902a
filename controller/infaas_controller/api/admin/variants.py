"""`/v1/variants`: what was made, how good it is, and taking one out or putting it back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from infaas.control import VariantDocument, VariantList
from infaas_controller.api.admin.bodies import VariantBody, errors
from infaas_controller.api.admin.paths import Name, actor_of
from infaas_controller.register.registrar import Registrar


def variants_router(registrar: Registrar) -> APIRouter:
    """The routes of one controller."""
    router = APIRouter(prefix="/variants", tags=["variants"])

    @router.get("", summary="List variants", responses=errors(404))
    async def list_variants(
        task: Annotated[str | None, Query()] = None, model: Annotated[str | None, Query()] = None
    ) -> VariantList:
        return VariantList(tuple(await registrar.list_variants(task=task, model=model)))

    @router.get("/{variant}", summary="Describe a variant", responses=errors(404))
    async def describe(variant: Name) -> VariantDocument:
        return await registrar.describe_variant(variant)

    @router.post("/{variant}/disable", summary="Take a variant out", responses=errors(404, 412))
    async def disable(variant: Name, request: Request, body: VariantBody | None = None) -> VariantDocument:
        reason = body.reason if body else ""
        return await registrar.disable_variant(variant, reason, actor=actor_of(request))

    @router.post("/{variant}/enable", summary="Put a variant back", responses=errors(404, 412))
    async def enable(variant: Name, request: Request) -> VariantDocument:
        return await registrar.enable_variant(variant, actor=actor_of(request))

    return router
