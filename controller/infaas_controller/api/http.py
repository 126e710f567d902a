"""The REST application: OIP, the control plane's routers, and one way to say what went wrong.

Infer requests leave before the framework is entered (`http_infer`); everything else goes through FastAPI, wrapped so
that each answer carries its request id and each error the body of SURFACE §3, whoever raised it.
`http_server` says how to serve it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from infaas import __version__
from infaas.clock import Clock, SystemClock
from infaas.domain.query import AccuracyConfidence, Code
from infaas.errors import InfaasError, InvalidError
from infaas.observe.metrics import Metrics
from infaas.observe.trace import Tracing
from infaas.rpc.edges import as_error, code_of_status, edge_of, error_body
from infaas.settings import Settings
from infaas.tokens import callers_tokens
from infaas_controller.api.auth import Authenticator
from infaas_controller.api.bulk.pool import Bulk
from infaas_controller.api.headers import Caller, caller_fields, error_fields, fresh_caller, read_caller
from infaas_controller.api.http_fast import FastInfer
from infaas_controller.api.http_infer import (
    JSON_TYPE,
    InferEndpoint,
    Message,
    Receive,
    Scope,
    Send,
    match_infer,
)
from infaas_controller.api.http_models import HEALTH_PATHS, ModelEndpoints
from infaas_controller.api.http_way import read_fields
from infaas_controller.api.openapi import complete
from infaas_controller.api.repository import Repository
from infaas_controller.api.service import ExplainLookup, Inference
from infaas_controller.api.spans import QuerySpans
from infaas_controller.ports import QueryService

CALLER_KEY = "infaas.caller"
HANDLED_KEY = "infaas.handled"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class EdgeApp(FastAPI):
    """FastAPI behind a short cut for queries and a guard for everything else."""

    def __init__(
        self, infer: InferEndpoint, fast: FastInfer | None, authenticator: Authenticator, **options: Any
    ) -> None:
        super().__init__(**options)
        self._infer = infer
        self.fast = fast
        """The short way past this application, for the server that runs it; None where queries are traced."""
        self._authenticator = authenticator

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = complete(super().openapi())
        return self.openapi_schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        target = match_infer(scope["path"])
        if target is not None and scope["method"] == "POST":
            await self._infer.serve(scope, receive, send, *target)
            return
        await self._guarded(scope, receive, send, is_infer=target is not None)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, *, is_infer: bool) -> None:
        caller = fresh_caller()
        scope[CALLER_KEY] = caller
        try:
            headers = read_fields(scope["headers"])
            caller = scope[CALLER_KEY] = read_caller(headers)
            if scope["path"] not in HEALTH_PATHS:
                self._authenticator.check(headers.get("authorization"))
        except InfaasError as error:
            await _error_response(error, scope)(scope, receive, _with_caller(send, caller))
            return
        if is_infer:
            refusal = HTTPException(405, headers={"allow": "POST"})
            await _error_response(refusal, scope)(scope, receive, _with_caller(send, caller))
            return
        try:
            await super().__call__(scope, receive, _with_caller(send, caller))
        except Exception:
            if HANDLED_KEY not in scope:  # answered and logged already; else the server must cut the connection
                raise


def create_app(
    service: QueryService,
    settings: Settings,
    admin_routers: Sequence[APIRouter] = (),
    metrics: Metrics | None = None,
    explain_lookup: ExplainLookup | None = None,
    *,
    clock: Clock | None = None,
    tracing: Tracing | None = None,
    parts: Callable[[], Mapping[str, str]] | None = None,
    bulk: Bulk | None = None,
) -> EdgeApp:
    """The whole REST surface. `admin_routers` are served as they are, behind the same credential and error bodies.

    `clock` must be the one that the query path measures deadlines with; `bulk` is the caller's to close, and without it
    large requests are read on the loop. Raises SettingsError when the token's file
    cannot be read.
    """
    clock = clock or SystemClock()
    confidence = AccuracyConfidence(settings.controller.accuracy_confidence)
    spans = None if tracing is None else QuerySpans(tracing, "rest")
    inference = Inference(service, clock, confidence, metrics, explain_lookup, spans, bulk)
    authenticator = Authenticator(callers_tokens(settings))
    bounds = settings.controller.max_body_bytes, settings.controller.max_json_bytes
    app = EdgeApp(
        InferEndpoint(inference, authenticator, *bounds),
        FastInfer(inference, authenticator, *bounds) if spans is None else None,
        authenticator,
        title="INFaaS",
        version=__version__,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.router.routes.extend(ModelEndpoints(service, Repository(service, clock), parts).routes())
    for router in admin_routers:
        app.include_router(router)
    for kind in (InfaasError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _on_exception)
    return app


async def _on_exception(request: Request, exception: Exception) -> Response:
    if isinstance(exception, HTTPException) and exception.status_code == 405:
        exception.headers = {"allow": _allowed(request)}
    return _error_response(exception, request.scope)


def _allowed(request: Request) -> str:
    """Every method of the path: the framework names those of the first route that has it."""
    routes = request.app.router.routes

    def is_taken(method: str) -> bool:
        asked = {**request.scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in routes)

    return ", ".join(method for method in _METHODS if is_taken(method))


def _error_response(exception: Exception, scope: Scope) -> Response:
    caller: Caller = scope.get(CALLER_KEY) or fresh_caller()
    error, status, headers = _described(exception, scope, caller)
    scope[HANDLED_KEY] = True
    headers |= dict(error_fields(error, is_query=False))
    if error.code is Code.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    return Response(error_body(error, caller.request_id), status, headers, JSON_TYPE)


def _described(exception: Exception, scope: Scope, caller: Caller) -> tuple[InfaasError, int, dict[str, str]]:
    if isinstance(exception, HTTPException):
        code = code_of_status(exception.status_code)
        text = _framework_text(exception, scope)
        return InfaasError(text, code=code), exception.status_code, dict(exception.headers or {})
    error: InfaasError
    if isinstance(exception, RequestValidationError):
        problems = [_problem(found) for found in exception.errors()]
        error = InvalidError("; ".join(problems), problems=problems)
    else:
        error = as_error(exception, caller.request_id)
    return error, edge_of(error.code).http, {}


def _framework_text(exception: HTTPException, scope: Scope) -> str:
    path, method = scope["path"], scope["method"]
    if exception.status_code == 404 and exception.detail == "Not Found":
        return f"no such path: {path!r}"
    if exception.status_code == 405:
        allowed = (exception.headers or {}).get("allow", "")
        return f"{path!r} does not take {method}; it takes {allowed}"
    return str(exception.detail)


def _problem(found: dict[str, Any]) -> str:
    """One finding of the framework's validation: where, what, and the offending value unless it is long."""
    if found["type"] == "json_invalid":
        return f"the body is not JSON: {found.get('ctx', {}).get('error', 'malformed')} at character {found['loc'][-1]}"
    where = ".".join(str(part) for part in found["loc"])
    shown = repr(found.get("input"))
    return f"{where}: {found['msg']}" + (f" (got {shown})" if len(shown) <= 80 else "")


def _with_caller(send: Send, caller: Caller) -> Send:
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in caller_fields(caller)]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", [])}
            missing = [field for field in fields if field[0] not in present]
            message = {**message, "headers": [*message.get("headers", []), *missing]}
        await send(message)

    return sending
