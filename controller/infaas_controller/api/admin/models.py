"""`/v1/models`: registration, versions, builds, rollback, unregistration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from infaas.control import (
    BuildDocument,
    ModelDocument,
    ModelList,
    RegistrationDocument,
    VariantList,
    VersionDocument,
    VersionList,
)
from infaas.errors import InvalidError
from infaas.settings import Settings
from infaas_controller.api.admin.bodies import RollbackBody, errors
from infaas_controller.api.admin.events import events, wants_events
from infaas_controller.api.admin.paths import IdempotencyKey, Name, Number, actor_of
from infaas_controller.api.admin.upload import Form, received_form
from infaas_controller.register.options import RegistrationOptions, Upload
from infaas_controller.register.registrar import Registrar

_FILE = {"type": "string", "format": "binary"}
_REGISTRATION_FORM = {
    "type": "object",
    "required": ["file", "task"],
    "properties": {
        "file": {**_FILE, "description": "The ONNX model"},
        "eval": {**_FILE, "description": "npz: one array per input, and `label` or the outputs' names"},
        "calibration": {**_FILE, "description": "npz: one array per input; never scored"},
        "task": {"type": "string", "description": "Created by its first model"},
        "name": {"type": "string", "description": "The model's name; empty: from the file's"},
        "metric": {"type": "string", "description": "accuracy, f1, mae, rmse, or an installed one"},
        "map": {"type": "array", "items": {"type": "string"}, "description": "`theirs=ours`, repeatable"},
        "label": {"type": "array", "items": {"type": "string"}, "description": "`key=value`, repeatable"},
        "accuracy": {"type": "number", "minimum": 0, "maximum": 1, "description": "Declared, instead of `eval`"},
    },
}
_MULTIPART: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _REGISTRATION_FORM}}}
}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "With `Accept: text/event-stream`, an event `build` per change", "model": BuildDocument}
}


def models_router(registrar: Registrar, settings: Settings) -> APIRouter:
    """The routes of one controller."""
    router = APIRouter(prefix="/models", tags=["models"])
    folder = Path(settings.state_dir) / "run"
    limit = settings.controller.max_upload_bytes

    @router.get("", summary="List models", responses=errors())
    async def list_models(task: Annotated[str | None, Query()] = None) -> ModelList:
        return ModelList(tuple(await registrar.list_models(task)))

    @router.post(
        "",
        summary="Register a model",
        status_code=202,
        responses=errors(400, 409, 413),
        openapi_extra=_MULTIPART,
        response_description="Taken in; `Location` is its version, whose build makes the variants",
    )
    async def register(
        request: Request,
        response: Response,
        idempotency_key: IdempotencyKey = None,
    ) -> RegistrationDocument:
        async with received_form(request, folder, limit) as form:
            upload, options = _registration(form)
            document = await registrar.register(
                upload, options, idempotency_key=idempotency_key, actor=actor_of(request)
            )  # fmt: skip
        response.headers["Location"] = document.location
        return document

    @router.get("/{model}", summary="Describe a model", responses=errors(404))
    async def describe(model: Name) -> ModelDocument:
        return await registrar.describe_model(model)

    @router.delete("/{model}", summary="Unregister a model", status_code=202, responses=errors(404))
    async def unregister(model: Name, request: Request) -> ModelDocument:
        return await registrar.unregister(model, actor=actor_of(request))

    @router.post(
        "/{model}/rollback",
        summary="Have another version serve",
        status_code=202,
        responses=errors(404, 409, 412),
        response_description="Wanted; it serves once it is warm",
    )
    async def rollback(
        model: Name,
        request: Request,
        body: RollbackBody | None = None,
        idempotency_key: IdempotencyKey = None,
    ) -> ModelDocument:
        to = body.to if body else None
        return await registrar.rollback(model, to, idempotency_key=idempotency_key, actor=actor_of(request))

    @router.get("/{model}/variants", summary="List a model's variants", responses=errors(404))
    async def variants(model: Name) -> VariantList:
        return VariantList(tuple(await registrar.list_variants(model=model)))

    _add_versions(router, registrar)
    return router


def _add_versions(router: APIRouter, registrar: Registrar) -> None:
    """Versions and their builds."""

    @router.get("/{model}/versions", summary="List a model's versions", responses=errors(404))
    async def versions(model: Name) -> VersionList:
        return VersionList((await registrar.describe_model(model)).versions)

    @router.get("/{model}/versions/{version}", summary="Describe a version", responses=errors(404))
    async def version(model: Name, version: Number) -> VersionDocument:
        return await registrar.describe_version(model, version)

    @router.get(
        "/{model}/versions/{version}/build",
        summary="Follow a build",
        response_model=BuildDocument,
        responses=errors(404) | _EVENTS,
    )
    async def build(model: Name, version: Number, request: Request) -> Any:
        document = await registrar.build(model, version)
        return events("build", registrar.watch_build(model, version)) if wants_events(request) else document


def _registration(form: Form) -> tuple[Upload, RegistrationOptions]:
    """Raises InvalidError with everything that keeps the form from being a registration at all."""
    problems = []
    if "file" not in form.files:
        problems.append("file 'file' is missing: the ONNX model")
    if not form.one("task"):
        problems.append("field 'task' is missing: the task that the model solves")
    mapping = pairs("map", "theirs=ours", form.fields.get("map", ()), problems)
    labels = pairs("label", "key=value", form.fields.get("label", ()), problems)
    accuracy = None
    if text := form.one("accuracy"):
        try:
            accuracy = float(text)
        except ValueError:
            problems.append(f"accuracy {text!r} is not a number")
    if problems:
        raise InvalidError("; ".join(problems), problems=problems)
    model, filename = form.files["file"]
    evaluation, calibration = (form.files[name][0] if name in form.files else None for name in ("eval", "calibration"))
    options = RegistrationOptions(
        task=form.one("task") or "",
        name=form.one("name") or None,
        metric=form.one("metric") or None,
        mapping=mapping,
        labels=labels,
        accuracy=accuracy,
        isolation=form.one("isolation") or None,
    )
    return Upload(model, filename, evaluation, calibration), options


def pairs(name: str, shape: str, values: Sequence[str], problems: list[str]) -> dict[str, str]:
    """Of repeated fields; what is not of the shape is added to the problems."""
    found: dict[str, str] = {}
    for text in values:
        key, sign, value = text.partition("=")
        if not sign or not key:
            problems.append(f"{name} {text!r} is not of the form {shape}")
        elif key in found:
            problems.append(f"{name} {key!r} was given twice")
        else:
            found[key] = value
    return found
