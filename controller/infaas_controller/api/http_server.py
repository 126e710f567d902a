"""How the REST and metrics applications are served: uvicorn, over connections with bounds (`http_protocol`)."""

from __future__ import annotations

import functools
from typing import Any

import uvicorn

from infaas_controller.api.http_fast import FastInfer
from infaas_controller.api.http_limits import Limits
from infaas_controller.api.http_protocol import BoundedProtocol


def server_config(
    app: Any, limits: Limits | None = None, fast: FastInfer | None = None, **options: Any
) -> uvicorn.Config:
    """What the REST and metrics ports are served with; `fast` is the application's short way for usual queries, and
    `options` go over the rest."""
    chosen: dict[str, Any] = {
        "http": functools.partial(BoundedProtocol, limits or Limits(), fast),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": True,
        "lifespan": "off",
        "timeout_keep_alive": 75,
    }
    return uvicorn.Config(app, **(chosen | options))
