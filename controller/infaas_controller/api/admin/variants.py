"""`/v1/variants`: what was made, how good it is, and taking one out or putting it back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from infaas.control import ProfileList, ProfilingDocument, ProfilingList, VariantDocument, VariantList
from infaas_controller.api.admin.bodies import IsolationBody, ProfileBody, VariantBody, errors
from infaas_controller.api.admin.events import events, wants_events
from infaas_controller.api.admin.paths import IdempotencyKey, Name, Number, actor_of
from infaas_controller.register.registrar import Registrar

_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "As `text/event-stream`: an event `profiling` per change", "model": ProfilingDocument}
}


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

    @router.post("/{variant}/isolation", summary="Say where its instances run", responses=errors(400, 404))
    async def isolate(variant: Name, request: Request, body: IsolationBody) -> VariantDocument:
        return await registrar.isolate_variant(variant, body.isolation, actor=actor_of(request))

    _add_profilings(router, registrar)
    return router


def _add_profilings(router: APIRouter, registrar: Registrar) -> None:
    """Measuring a variant anew, and what was measured of it."""
    profilings = registrar.profilings

    @router.post(
        "/{variant}/profile",
        summary="Measure a variant anew",
        status_code=202,
        responses=errors(400, 404, 409, 412),
        response_description="Ordered, or joined to an order that is open; `Location` says where it stands",
    )
    async def profile(
        variant: Name,
        request: Request,
        response: Response,
        body: ProfileBody | None = None,
        idempotency_key: IdempotencyKey = None,
    ) -> ProfilingDocument:
        document = await registrar.profile_variant(
            variant, body.budget_s if body else None, idempotency_key=idempotency_key, actor=actor_of(request)
        )
        response.headers["Location"] = document.location
        return document

    @router.get("/{variant}/profiles", summary="Every profile of a variant", responses=errors(404))
    async def profiles(variant: Name) -> ProfileList:
        return ProfileList(tuple(await profilings.profiles(variant)))

    @router.get("/{variant}/profilings", summary="List a variant's profilings", responses=errors(404))
    async def list_profilings(variant: Name) -> ProfilingList:
        return ProfilingList(tuple(await profilings.documents(variant)))

    @router.get(
        "/{variant}/profilings/{profiling}",
        summary="Follow a profiling",
        response_model=ProfilingDocument,
        responses=errors(404) | _EVENTS,
    )
    async def follow(variant: Name, profiling: Number, request: Request) -> Any:
        document = await profilings.document(variant, profiling)
        if not wants_events(request):
            return document
        return events("profiling", profilings.watch(variant, profiling))
