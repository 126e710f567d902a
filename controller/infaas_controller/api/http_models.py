"""Every route of the Open Inference Protocol over REST but infer: health, metadata, config, statistics, repository.

Plain Starlette routes: their bodies are the protocol's, described by its own specification, not by our OpenAPI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infaas.errors import InvalidError, TooLargeError, UnavailableError, UnsupportedError
from infaas.rpc.requirements import Scalar
from infaas_controller.api import documents, stats
from infaas_controller.api.intake import parse_version
from infaas_controller.api.repository import Repository
from infaas_controller.ports import QueryService

MAX_CONTROL_BODY = 1 << 20
_NO_SHARED_MEMORY = "shared memory is not served; send tensors in the request"
_UNSUPPORTED = {
    "/v2/systemsharedmemory/{rest:path}": _NO_SHARED_MEMORY,
    "/v2/cudasharedmemory/{rest:path}": _NO_SHARED_MEMORY,
    "/v2/trace/setting": "trace settings are not served; `traceparent` is taken on every request",
    "/v2/models/{name}/trace/setting": "trace settings are not served; `traceparent` is taken on every request",
    "/v2/logging": "log settings are not served; set log.level in the configuration",
    "/v2/models/{name}/generate": "generate is not served; use infer",
    "/v2/models/{name}/generate_stream": "generate_stream is not served; use infer",
    "/v2/models/{name}/versions/{version}/generate": "generate is not served; use infer",
    "/v2/models/{name}/versions/{version}/generate_stream": "generate_stream is not served; use infer",
}
_ANY_METHOD = ["GET", "POST", "PUT", "DELETE"]
HEALTH_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/livez", "/readyz", "/healthz"})
"""Open to everyone: a probe has no credential."""


class _IndexBody(msgspec.Struct, frozen=True):
    ready: bool = False


class _ControlBody(msgspec.Struct, frozen=True):
    parameters: dict[str, Scalar] = {}


T = TypeVar("T", _IndexBody, _ControlBody)


class ModelEndpoints:
    def __init__(
        self, service: QueryService, repository: Repository, parts: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        """`parts`: the state, in a word each, of what the service depends on."""
        self._parts = parts or dict
        self._service = service
        self._repository = repository

    def routes(self) -> list[Route]:
        routes = [_get(path, self.live) for path in ("/v2/health/live", "/livez", "/healthz")]
        routes += [_get(path, self.ready) for path in ("/v2/health/ready", "/readyz")]
        routes += [_get("/v2", self.server), _get("/v2/models", self.models), _get("/v2/models/stats", self.all_stats)]
        for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                _get(base, self.metadata),
                _get(f"{base}/ready", self.model_ready),
                _get(f"{base}/config", self.config),
                _get(f"{base}/stats", self.stats),
            ]
        routes.append(_post("/v2/repository/index", self.repository_index))
        routes.append(_post("/v2/repository/models/{name}/load", self.load))
        routes.append(_post("/v2/repository/models/{name}/unload", self.unload))
        routes += [_unsupported(path, text) for path, text in _UNSUPPORTED.items()]
        return routes

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        if not self._service.is_ready():
            raise UnavailableError("not ready: no view of the cluster yet, no worker answers, or draining")
        return _json({"ready": True, **self._parts()})

    async def server(self, request: Request) -> Response:
        return _json(documents.server_metadata())

    async def models(self, request: Request) -> Response:
        return _json({"models": self._repository.index().names()})

    async def model_ready(self, request: Request) -> Response:
        name, version = _handle(request)
        is_ready, why = self._repository.is_ready(name, version)
        if not is_ready:
            raise UnavailableError(why)
        return _json({"name": name, "ready": True})

    async def metadata(self, request: Request) -> Response:
        return _json(documents.metadata(self._resolved(request)))

    async def config(self, request: Request) -> Response:
        return _json(documents.config(self._resolved(request)))

    async def stats(self, request: Request) -> Response:
        name, version = _handle(request)
        index = self._repository.index()
        return _json({"model_stats": stats.statistics(index, self._service.stats(), name, version)})

    async def all_stats(self, request: Request) -> Response:
        return _json({"model_stats": stats.all_statistics(self._repository.index(), self._service.stats())})

    async def repository_index(self, request: Request) -> Response:
        body = await _control_body(request, _IndexBody)
        return _json(documents.repository_index(self._repository.index(), body.ready))

    async def load(self, request: Request) -> Response:
        body = await _control_body(request, _ControlBody)
        await self._repository.load(request.path_params["name"], body.parameters)
        return Response(status_code=200)

    async def unload(self, request: Request) -> Response:
        await _control_body(request, _ControlBody)
        await self._repository.unload(request.path_params["name"])
        return Response(status_code=200)

    def _resolved(self, request: Request) -> documents.Handle:
        name, version = _handle(request)
        return documents.resolve(self._repository.index(), name, version)


def _get(path: str, endpoint: Any) -> Route:
    return Route(path, endpoint, methods=["GET"], include_in_schema=False)


def _post(path: str, endpoint: Any) -> Route:
    return Route(path, endpoint, methods=["POST"], include_in_schema=False)


def _unsupported(path: str, text: str) -> Route:
    async def refuse(request: Request) -> Response:
        raise UnsupportedError(text)

    return Route(path, refuse, methods=_ANY_METHOD, include_in_schema=False)


def _handle(request: Request) -> tuple[str, int | None]:
    return request.path_params["name"], parse_version(request.path_params.get("version"))


async def _control_body(request: Request, kind: type[T]) -> T:
    """The small JSON body of a control call; none at all is an empty one."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_CONTROL_BODY:
            raise TooLargeError(f"the body has more than {MAX_CONTROL_BODY} bytes; models are registered by /v1/models")
    if not body:
        return kind()
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidError(f"request: {error}") from None


def _json(document: object) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
