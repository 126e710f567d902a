"""Whether a controller answers: one small request, without an HTTP library, because the supervisor stays small."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

from infaas.up.record import Endpoints


def is_ready(endpoints: Endpoints, timeout_s: float = 1.0) -> bool:
    """`GET /v2/health/ready` is 200."""
    status, _ = get(endpoints, "/v2/health/ready", timeout_s=timeout_s)
    return status == 200


def connected_workers(endpoints: Endpoints, token: str | None, timeout_s: float = 1.0) -> int:
    """How many workers are ready and connected to the controller."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    status, body = get(endpoints, "/v1/workers", headers=headers, timeout_s=timeout_s)
    if status != 200:
        return 0
    try:
        workers: list[Mapping[str, Any]] = json.loads(body)["workers"]
        return sum(1 for worker in workers if worker["is_connected"] and worker["state"] == "READY")
    except (ValueError, KeyError, TypeError):
        # Cut off in the middle, or not our controller: either way no worker is known to be there.
        return 0


def serving_processes(endpoints: Endpoints, token: str | None, timeout_s: float = 1.0) -> int:
    """How many of the controller's processes take queries."""
    found = parts(endpoints, token, timeout_s)
    processes = [] if found is None else found.get("processes", [])
    return sum(1 for process in processes if process["state"] == "serving" and process["is_ready"])


def parts(endpoints: Endpoints, token: str | None, timeout_s: float = 2.0) -> dict[str, Any] | None:
    """The controller's `SystemDocument`: what it knows of store, catalogue and workers. None when it does not say."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    status, body = get(endpoints, "/v1/system", headers=headers, timeout_s=timeout_s)
    if status != 200:
        return None
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"store", "catalogue", "workers"} <= found.keys() else None


def get(
    endpoints: Endpoints, path: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = 1.0
) -> tuple[int, bytes]:
    """Status and body; status 0 when nobody answers in time."""
    host = endpoints.url.removeprefix("http://").rsplit(":", 1)[0].strip("[]")
    # HTTP/1.0 asks for a plain body that ends with the connection.
    lines = [f"GET {path} HTTP/1.0", f"Host: {host}", *(f"{k}: {v}" for k, v in (headers or {}).items()), "", ""]
    try:
        with socket.create_connection((host, endpoints.http_port), timeout=timeout_s) as connection:
            connection.sendall("\r\n".join(lines).encode())
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    except OSError:
        return 0, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    is_http = len(words) >= 2 and words[0].startswith(b"HTTP/") and words[1].isdigit()
    return (int(words[1]), body) if is_http else (0, b"")
