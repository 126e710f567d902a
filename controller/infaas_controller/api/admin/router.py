"""All of `/v1`, and what it asks of the rest of the controller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Protocol

from fastapi import APIRouter, Query

from infaas.control import Decision, DecisionList, SystemDocument, WorkerDocument, WorkerList
from infaas.domain.ids import WorkerId
from infaas.errors import NotFoundError
from infaas_controller.api.admin.autoscaler import autoscaler_router
from infaas_controller.api.admin.bodies import errors
from infaas_controller.api.admin.models import models_router
from infaas_controller.api.admin.paths import Name
from infaas_controller.api.admin.tasks import tasks_router
from infaas_controller.api.admin.triton import triton_router
from infaas_controller.api.admin.variants import variants_router
from infaas_controller.fleet.documents import FleetDesk
from infaas_controller.journal import Journal
from infaas_controller.ports import QueryService
from infaas_controller.register.registrar import Registrar
from infaas_controller.scalings import Scalings


class Workers(Protocol):
    """What the control plane asks of the links to workers."""

    def documents(self) -> Sequence[WorkerDocument]: ...
    def require_listed(self) -> None:
        """Raises UnavailableError while a worker that is not in the documents may well exist."""

    async def drain(self, worker: WorkerId, /) -> None:
        """Let a worker finish what it has and give it nothing new. Raises NotFoundError, UnavailableError."""

    async def resume(self, worker: WorkerId, /) -> None:
        """Raises NotFoundError, UnavailableError."""


class Others(Protocol):
    """Who else may remember a decision."""

    async def decision(self, key: str, *, is_here: bool = False) -> Decision | None:
        """From another process of this controller or, unless `is_here`, from another controller."""

    async def recent(self, limit: int) -> Sequence[Decision]:
        """The newest of the other processes of this controller."""


def admin_router(
    registrar: Registrar,
    service: QueryService,
    workers: Workers,
    journal: Journal,
    others: Others | None = None,
    system: Callable[[], SystemDocument] | None = None,
    scalings: Scalings | None = None,
    fleet: FleetDesk | None = None,
) -> APIRouter:
    """Every route under `/v1`. Errors leave as `infaas.errors`; the HTTP edge turns them into answers."""
    router = APIRouter(prefix="/v1")
    router.include_router(tasks_router(registrar))
    router.include_router(models_router(registrar, registrar.settings))
    router.include_router(variants_router(registrar))
    router.include_router(triton_router(registrar))
    router.include_router(_workers_router(workers))
    router.include_router(_decisions_router(service, journal, others))
    if scalings is not None:
        router.include_router(autoscaler_router(scalings, fleet))
    if system is not None:
        router.include_router(_system_router(system))
    return router


def _system_router(system: Callable[[], SystemDocument]) -> APIRouter:
    router = APIRouter(prefix="/system", tags=["system"])

    @router.get("", summary="The parts this controller depends on", responses=errors())
    async def describe() -> SystemDocument:
        """Whether store and catalogue can be read and written, and why not; answers whatever is lost."""
        return system()

    return router


def _workers_router(workers: Workers) -> APIRouter:
    router = APIRouter(prefix="/workers", tags=["workers"])

    def known(id: str) -> WorkerDocument:
        for document in workers.documents():
            if document.id == id:
                return document
        workers.require_listed()
        raise NotFoundError(f"there is no worker {id!r}")

    @router.get("", summary="List workers", responses=errors())
    async def list_workers() -> WorkerList:
        workers.require_listed()
        return WorkerList(tuple(workers.documents()))

    @router.get("/{worker}", summary="Describe a worker", responses=errors(404))
    async def describe(worker: Name) -> WorkerDocument:
        return known(worker)

    @router.post("/{worker}/drain", summary="Finish what it has, give it nothing new", responses=errors(404))
    async def drain(worker: Name) -> WorkerDocument:
        await workers.drain(WorkerId(worker))
        return known(worker)

    @router.post("/{worker}/resume", summary="Put a drained worker back to work", responses=errors(404))
    async def resume(worker: Name) -> WorkerDocument:
        await workers.resume(WorkerId(worker))
        return known(worker)

    return router


_Process = Annotated[bool, Query(description="Ask neither other controllers nor other processes of this one")]


def _decisions_router(service: QueryService, journal: Journal, others: Others | None) -> APIRouter:
    router = APIRouter(prefix="/decisions", tags=["decisions"])

    @router.get("", summary="The newest decisions", responses=errors())
    async def recent(limit: Annotated[int, Query(ge=1, le=1000)] = 50, process: _Process = False) -> DecisionList:
        """Those in memory; when there are fewer than asked for, the journal's older ones too."""
        found = list(service.recent(limit))
        if process:
            return DecisionList(tuple(found))
        if others is not None:
            found += await others.recent(limit)
        if len(found) < limit:
            known = {decision.id for decision in found}
            older = await journal.recent(limit + len(found))
            found += [decision for decision in older if decision.id not in known]
        newest = sorted(found, key=lambda decision: decision.at, reverse=True)
        return DecisionList(tuple(newest[:limit]))

    @router.get("/{key}", summary="Explain a query", responses=errors(404))
    async def explain(
        key: str,
        here: Annotated[bool, Query(description="Ask no other controller")] = False,
        process: _Process = False,
    ) -> Decision:
        """By decision id or request id: from memory, from the controller that made it, or from the journal."""
        decision = service.decision(key)
        if decision is None and others is not None and not process:
            decision = await others.decision(key, is_here=here)
        if decision is None and not process:
            decision = await journal.find(key)
        if decision is None:
            raise NotFoundError(
                f"no decision {key!r} is kept: refusals (some of a flood) and a sample of answers are journaled, "
                "others are forgotten"
            )
        return decision

    return router
