"""`/v1/triton/models`: what a Triton server has, and attaching some of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from infaas.control import ForeignModelList, RegistrationDocument
from infaas.errors import InvalidError
from infaas_controller.api.admin.bodies import errors
from infaas_controller.api.admin.models import pairs
from infaas_controller.api.admin.paths import actor_of
from infaas_controller.api.admin.upload import Form, received_form
from infaas_controller.register.attachment import AttachOptions
from infaas_controller.register.registrar import Registrar

_FIELDS = ("server", "model", "version", "task", "name", "metric", "map", "label", "accuracy", "price")
_FORM = {
    "type": "object",
    "required": ["model", "task"],
    "properties": {
        "server": {"type": "string", "description": "grpc://HOST:PORT; empty: the configured `worker.triton_url`"},
        "model": {"type": "string", "description": "Its name on the server"},
        "version": {"type": "string", "description": "There; empty: the newest that is loaded"},
        "task": {"type": "string", "description": "Created by its first model"},
        "name": {"type": "string", "description": "Its name here; empty: as there"},
        "eval": {"type": "string", "format": "binary", "description": "npz: inputs, and `label` or outputs"},
        "metric": {"type": "string", "description": "accuracy, f1, mae, rmse, or an installed one"},
        "map": {"type": "array", "items": {"type": "string"}, "description": "`theirs=ours`, repeatable"},
        "label": {"type": "array", "items": {"type": "string"}, "description": "`key=value`, repeatable"},
        "accuracy": {"type": "number", "minimum": 0, "maximum": 1, "description": "Declared, instead of `eval`"},
        "price": {"type": "number", "minimum": 0, "description": "USD per hour of one of the server's instances"},
    },
}
_MULTIPART: dict[str, Any] = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


def triton_router(registrar: Registrar) -> APIRouter:
    """The routes of one controller."""
    router = APIRouter(prefix="/triton", tags=["triton"])
    settings = registrar.settings

    @router.get("/models", summary="List a Triton server's models", responses=errors(400))
    async def discover(
        server: Annotated[
            str | None, Query(max_length=255, description="grpc://HOST:PORT; empty: the configured one")
        ] = None,
    ) -> ForeignModelList:
        return ForeignModelList(await registrar.attacher.discover(server))

    @router.post(
        "/models",
        summary="Attach a model of a Triton server",
        status_code=202,
        responses=errors(400, 404, 409, 413),
        openapi_extra=_MULTIPART,
        response_description="Taken in; `Location` is its version, which is measured next. Repeating it is safe",
    )
    async def attach(request: Request, response: Response) -> RegistrationDocument:
        folder, limit = Path(settings.state_dir) / "run", settings.controller.max_upload_bytes
        async with received_form(request, folder, limit, files=("eval",), fields=_FIELDS) as form:
            options = _options(form, registrar)
            evaluation = form.files["eval"][0] if "eval" in form.files else None
            document = await registrar.attach(options, evaluation, actor=actor_of(request))
        response.headers["Location"] = document.location
        return document

    return router


def _options(form: Form, registrar: Registrar) -> AttachOptions:
    """Raises InvalidError with everything that keeps the form from being understood at all."""
    problems = [f"field {name!r} is missing" for name in ("model", "task") if not form.one(name)]
    mapping = pairs("map", "theirs=ours", form.fields.get("map", ()), problems)
    labels = pairs("label", "key=value", form.fields.get("label", ()), problems)
    accuracy = _number(form, "accuracy", problems)
    price = _number(form, "price", problems)
    if problems:
        raise InvalidError("; ".join(problems), problems=problems)
    return AttachOptions(
        url=registrar.attacher.url(form.one("server") or None),
        server_model=form.one("model") or "",
        server_version=form.one("version") or "",
        task=form.one("task") or "",
        name=form.one("name") or None,
        metric=form.one("metric") or None,
        mapping=mapping,
        labels=labels,
        accuracy=accuracy,
        price_usd_per_hour=price,
    )


def _number(form: Form, name: str, problems: list[str]) -> float | None:
    text = form.one(name)
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        problems.append(f"{name} {text!r} is not a number")
        return None
