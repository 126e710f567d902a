"""`/v1/tasks`: use cases, their inputs and outputs, and the requirements of queries that state none."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from infaas.control import TaskDocument, TaskList
from infaas_controller.api.admin.bodies import TaskBody, TaskChangeBody, errors
from infaas_controller.api.admin.paths import Name, actor_of
from infaas_controller.register.registrar import Registrar


def tasks_router(registrar: Registrar) -> APIRouter:
    """The routes of one controller."""
    router = APIRouter(prefix="/tasks", tags=["tasks"])

    @router.get("", summary="List tasks", responses=errors())
    async def list_tasks() -> TaskList:
        return TaskList(tuple(await registrar.list_tasks()))

    @router.post("", summary="Create a task", status_code=201, responses=errors(400, 409))
    async def create(
        body: TaskBody,
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    ) -> TaskDocument:
        document = await registrar.create_task(body.task(), idempotency_key=idempotency_key, actor=actor_of(request))
        response.headers["Location"] = f"/v1/tasks/{document.task.name}"
        return document

    @router.get("/{task}", summary="Describe a task", responses=errors(404))
    async def describe(task: Name) -> TaskDocument:
        return await registrar.describe_task(task)

    @router.patch("/{task}", summary="Change defaults, labels or classes", responses=errors(400, 404, 409))
    async def change(task: Name, body: TaskChangeBody, request: Request) -> TaskDocument:
        return await registrar.set_task(task, body.change(), actor=actor_of(request))

    return router
