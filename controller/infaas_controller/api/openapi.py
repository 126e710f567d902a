"""The OpenAPI document: the control plane's routes as the framework describes them, the protocol's as described here.

It promises what the edges do: every status that an operation can answer with, the bodies of both kinds, and the headers
that requests may and answers will carry. The outside fuzzer of the end-to-end tests holds the system to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from infaas.domain.ids import MAX_NAME_LENGTH, NAME_PATTERN
from infaas.domain.query import Code, Objective, Priority
from infaas.domain.tensor import Datatype
from infaas.rpc.requirements import (
    ACCURACY,
    COST,
    EXPLAIN,
    FALLBACK,
    LATENCY,
    MAX_LATENCY_MS,
    OBJECTIVE,
    PRIORITY,
    TENANT,
)
from infaas_controller.api.headers import DECISION_ID, MAX_REQUEST_ID, REQUEST_ID, TRACEPARENT, TRACESTATE

Document = dict[str, Any]

JSON = "application/json"
BINARY = "application/octet-stream"
METHODS = ("get", "put", "post", "delete", "patch", "head", "options", "trace")
HEADER_LENGTH = "Inference-Header-Content-Length"

_EVERYWHERE = (400, 401, 500)
"""A malformed `x-request-id`, a missing credential, and a fault of ours can meet every operation."""
_MEANINGS = {
    400: "Something in the request is wrong; the text names it and says what would be right",
    401: "No or wrong credential",
    404: "Nothing is registered under this name or version",
    408: "The body did not arrive in time",
    409: "The name is taken, or the write conflicts with another",
    412: "The state of things does not allow it",
    413: "The body is too large",
    422: "No variant can ever meet the requirements; the text names the bound that binds and the nearest variant",
    429: "Shed, queue full, or the deadline cannot be met at the present load; not executed",
    500: "The model itself raised, or an internal error whose details are in the log",
    501: "A feature that is not served",
    503: "Loading, no ready worker, or draining; not executed",
    504: "The deadline passed",
}
_WAITABLE = (429, 503)


def complete(document: Document) -> Document:
    """The framework's document of `/v1`, corrected and joined by everything under `/v2`. Changes and returns it."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= _schemas()
    for path in document["paths"].values():
        for operation in _operations(path):
            _correct(operation)
    document["paths"] |= _protocol_paths()
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"token": []}]
    return document


def _operations(path: Mapping[str, Any]) -> Iterable[Document]:
    return [path[method] for method in METHODS if method in path]


def _correct(operation: Document) -> None:
    """Validation is answered with 400 and our body, never with the framework's 422."""
    responses: Document = operation["responses"]
    for word in ("4XX", "5XX"):
        responses.pop(word, None)
    schema = responses.get("422", {}).get("content", {}).get(JSON, {}).get("schema", {})
    if schema.get("$ref", "").endswith("/HTTPValidationError"):
        del responses["422"]
    for status in _EVERYWHERE:
        responses.setdefault(str(status), _error(status))
    for response in responses.values():
        response.setdefault("headers", {}).setdefault(REQUEST_ID, _header("The request's id, as sent or made"))
    operation.setdefault("parameters", []).extend(_caller_headers())


def _protocol_paths() -> Document:
    live, ready = _get("Whether the server lives", {}, 200), _get("Whether queries can be served", {}, 200, 503)
    for open_to_all in (live, ready):
        del open_to_all["responses"]["401"]
        open_to_all["security"] = []
    paths: Document = {}
    for path in ("/v2/health/live", "/livez", "/healthz"):
        paths[path] = {"get": _named(live, path)}
    for path in ("/v2/health/ready", "/readyz"):
        paths[path] = {"get": _named(ready, path)}
    paths["/v2"] = {"get": _get("Server metadata", _ref("ServerMetadata"), 200)}
    names = {"type": "object", "required": ["models"], "properties": {"models": _list({"type": "string"})}}
    paths["/v2/models"] = {"get": _get("Names that can be asked for", names, 200)}
    paths["/v2/models/stats"] = {"get": _get("Statistics of everything", _ref("Statistics"), 200)}
    for base, parameters in (
        ("/v2/models/{name}", [_NAME]),
        ("/v2/models/{name}/versions/{version}", [_NAME, _VERSION]),
    ):
        metadata = _get("Inputs and outputs", _ref("ModelMetadata"), 200, 404)
        paths[base] = {"get": metadata, "parameters": parameters}
        readiness = _get("Whether it can be served now", {}, 200, 404, 503)
        paths[f"{base}/ready"] = {"get": readiness, "parameters": parameters}
        config = _get("Configuration, in Triton's fields", {"type": "object"}, 200, 404)
        paths[f"{base}/config"] = {"get": config, "parameters": parameters}
        paths[f"{base}/stats"] = {
            "get": _get("Statistics, in Triton's fields", _ref("Statistics"), 200, 404),
            "parameters": parameters,
        }
        paths[f"{base}/infer"] = {"post": _infer(), "parameters": parameters}
    paths |= _repository_paths()
    for path, item in paths.items():
        for operation in _operations(item):
            operation.setdefault("operationId", _operation_id(path, operation))
    return paths


def _repository_paths() -> Document:
    rows = _list(_ref("RepositoryRow"))
    ready = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    parameters = {"type": "object", "properties": {"parameters": {"type": "object"}}}
    load = _post("Load; answers once an instance is ready", parameters, None, 200, 404, 413, 501, 503)
    unload = _post("Drain every instance", parameters, None, 200, 404, 413, 503)
    return {
        "/v2/repository/index": {"post": _post("What is registered, and its state", ready, rows, 200, 413)},
        "/v2/repository/models/{name}/load": {"post": load, "parameters": [_NAME]},
        "/v2/repository/models/{name}/unload": {"post": unload, "parameters": [_NAME]},
    }


def _infer() -> Document:
    operation = _post("Infer", _ref("InferRequest"), _ref("InferResponse"), *_INFER_STATUSES)
    operation["requestBody"] = {
        "required": True,
        "description": f"JSON; or JSON and then the tensors' bytes, with `{HEADER_LENGTH}` telling where they begin. "
        "`Content-Encoding` may be gzip or deflate.",
        "content": {
            JSON: {"schema": _ref("InferRequest"), "example": _INFER_EXAMPLE},
            BINARY: {"schema": {"type": "string", "format": "binary"}},
        },
    }
    operation["parameters"] = [*_requirement_headers(), *_caller_headers()]
    good = operation["responses"]["200"]
    good["content"][BINARY] = {"schema": {"type": "string", "format": "binary"}}
    good["headers"] |= {
        DECISION_ID: _header("What `infaas explain` takes"),
        "x-infaas-variant": _header("The variant that served"),
        "x-infaas-worker": _header("The worker that it ran on"),
        "x-infaas-slo-met": _header("Whether the latency objective was met", {"type": "string", "enum": _BOOLS}),
        "x-infaas-attempts": _header("Batches that it was in", {"type": "integer"}),
        "x-infaas-queue-ms": _header("Waiting in the controller", {"type": "number"}),
        "x-infaas-cold-start": _header("Present when it waited for a load", {"type": "string", "enum": ["true"]}),
        "x-infaas-fallback": _header("Why the answer is below what was asked for, when that was allowed"),
        "Server-Timing": _header("Queue, run and total, in milliseconds"),
        HEADER_LENGTH: _header("Bytes of JSON before the tensors' bytes", {"type": "integer"}),
    }
    for status in _WAITABLE:
        dropped = _header("`saturated`, `deadline-unreachable`, `no-worker` and so on, for what was dropped")
        operation["responses"][str(status)]["headers"]["x-infaas-dropped-reason"] = dropped
    return operation


_INFER_STATUSES = (200, 404, 408, 413, 422, 429, 501, 503, 504)
_BOOLS = ["true", "false"]
_NAME: Document = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A task, a model or a variant",
    "schema": {"type": "string", "pattern": f"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_LENGTH - 1}}}$"},
    "example": "simple",
}
_VERSION: Document = {
    "name": "version",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    "example": 1,
}
_INFER_EXAMPLE: Document = {
    "inputs": [
        {"name": name, "shape": [1, 16], "datatype": "INT32", "data": list(range(16))} for name in ("INPUT0", "INPUT1")
    ]
}
"""Of the demonstration model `simple`."""


def _requirement_headers() -> list[Document]:
    latency = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_LATENCY_MS}
    return [
        _parameter(LATENCY, "End-to-end objective in milliseconds", latency),
        _parameter(ACCURACY, "Least measured accuracy; 0: no floor", {"type": "number", "minimum": 0, "maximum": 1}),
        _parameter(COST, "Most USD per 1,000 queries", {"type": "number", "minimum": 0}),
        _parameter(OBJECTIVE, "Among those that meet the rest", _enum(Objective)),
        _parameter(PRIORITY, "What is shed last or first", _enum(Priority)),
        _parameter(TENANT, "On whose behalf", {"type": "string", "pattern": rf"^{NAME_PATTERN}$"}),
        _parameter(FALLBACK, "Whether a labelled worse answer will do", {"type": "string", "enum": ["allow", "deny"]}),
        _parameter(EXPLAIN, "Put the decision into the answer", {"type": "string", "enum": _BOOLS}),
        _parameter(HEADER_LENGTH, "Bytes of JSON before the tensors' bytes", {"type": "integer", "minimum": 0}),
    ]


def _caller_headers() -> list[Document]:
    printable = {"type": "string", "pattern": rf"^[!-~]{{1,{MAX_REQUEST_ID}}}$"}
    return [
        _parameter(REQUEST_ID, "Comes back; one is made where none is sent", printable),
        _parameter(TRACEPARENT, "W3C trace context; comes back", {"type": "string"}),
        _parameter(TRACESTATE, "W3C trace context; comes back", {"type": "string"}),
    ]


def _get(summary: str, schema: Document, *statuses: int) -> Document:
    return {
        "summary": summary,
        "tags": ["protocol"],
        "parameters": _caller_headers(),
        "responses": _responses(schema, statuses),
    }


def _post(summary: str, body: Document, schema: Document | None, *statuses: int) -> Document:
    return _get(summary, {}, *statuses) | {
        "requestBody": {"required": False, "content": {JSON: {"schema": body}}},
        "responses": _responses(schema, statuses),
    }


def _responses(schema: Document | None, statuses: Iterable[int]) -> Document:
    good: Document = {"description": "Done", "headers": {REQUEST_ID: _header("The request's id, as sent or made")}}
    if schema is not None:
        good["content"] = {JSON: {"schema": schema}}
    bad = sorted({*_EVERYWHERE, *statuses} - {200})
    return {"200": good} | {str(status): _error(status) for status in bad}


def _error(status: int) -> Document:
    headers = {REQUEST_ID: _header("The request's id, as sent or made")}
    if status in _WAITABLE:
        headers["Retry-After"] = _header("Seconds", {"type": "integer", "minimum": 1})
    return {"description": _MEANINGS[status], "headers": headers, "content": {JSON: {"schema": _ref("Error")}}}


def _schemas() -> Document:
    parameters = {"type": "object", "additionalProperties": {"type": ["boolean", "number", "string"]}}
    shape = _list({"type": "integer"})
    datatype = {"type": "string", "enum": [each.value for each in Datatype]}
    tensor = {"name": {"type": "string"}, "shape": shape, "datatype": datatype, "parameters": parameters}
    specification = _object({"name": {"type": "string"}, "datatype": datatype, "shape": shape})
    text = {"type": "string"}
    return {
        "Error": _error_schema(),
        "ServerMetadata": _object({"name": text, "version": text, "extensions": _list(text)}),
        "ModelMetadata": _object(
            {
                "name": text,
                "versions": _list(text),
                "platform": text,
                "inputs": _list(specification),
                "outputs": _list(specification),
            }
        ),
        "Statistics": _object({"model_stats": _list({"type": "object", "required": ["name", "version"]})}),
        "RepositoryRow": _object({"name": text, "version": text, "state": text, "reason": text}),
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": text,
                "parameters": parameters,
                "inputs": _list(_object(tensor | {"data": {"type": "array"}}, "name", "shape", "datatype")),
                "outputs": _list(_object({"name": text, "parameters": parameters}, "name")),
            },
        },
        "InferResponse": {
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "id": text,
                "model_name": text,
                "model_version": text,
                "parameters": parameters,
                "outputs": _list(_object(tensor | {"data": {"type": "array"}}, "name", "shape", "datatype")),
            },
        },
    }


def _error_schema() -> Document:
    return {
        "type": "object",
        "required": ["error", "code", "request_id", "decision_id", "retryable"],
        "properties": {
            "error": {"type": "string"},
            "code": {"type": "string", "enum": [code.value for code in Code]},
            "request_id": {"type": ["string", "null"]},
            "decision_id": {"type": ["string", "null"]},
            "retryable": {"type": "boolean"},
            "problems": {"type": "array", "items": {"type": "string"}},
        },
    }


def _object(properties: Document, *required: str) -> Document:
    return {"type": "object", "required": list(required or properties), "properties": properties}


def _list(items: Document) -> Document:
    return {"type": "array", "items": items}


def _enum(kind: type[Objective] | type[Priority]) -> Document:
    return {"type": "string", "enum": [each.value for each in kind]}


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _header(description: str, schema: Document | None = None) -> Document:
    return {"description": description, "schema": schema or {"type": "string"}}


def _parameter(name: str, description: str, schema: Document) -> Document:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _named(operation: Document, path: str) -> Document:
    return operation | {"operationId": path.strip("/").replace("/", "_")}


def _operation_id(path: str, operation: Document) -> str:
    words = path.strip("/").replace("{", "").replace("}", "").replace("/", "_")
    return f"{words}_{'post' if 'requestBody' in operation else 'get'}"
