"""Heads and answers of HTTP/1.1 that a connection writes by itself, without an application. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from infaas.errors import InfaasError
from infaas.rpc.edges import error_body, retry_after_header
from infaas_controller.api.headers import REQUEST_ID

_UPGRADE_FIELDS = frozenset({b"upgrade", b"http2-settings"})


def head_without_upgrade(method: bytes, target: bytes, version: bytes, fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The head of a request that asks for another protocol, without that wish; names are in lower case."""
    lines = [b"%s %s HTTP/%s" % (method, target, version)]
    for name, value in fields:
        if name == b"connection":
            kept = [word for word in value.split(b",") if word.strip().lower() not in _UPGRADE_FIELDS]
            value = b",".join(kept)
        if name not in _UPGRADE_FIELDS and (value or name != b"connection"):
            lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join([*lines, b"", b""])


def last_answer(status: int, error: InfaasError, request_id: str) -> bytes:
    """A refusal after which the connection ends."""
    body = error_body(error, request_id)
    fields = (
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"{REQUEST_ID}: {request_id}\r\nconnection: close\r\n"
    )
    retry_after = retry_after_header(error)
    if retry_after is not None:
        fields += f"retry-after: {retry_after}\r\n"
    return b"".join((STATUS_LINE[status], fields.encode("ascii"), b"\r\n", body))
