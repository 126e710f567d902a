"""Two servers that must not be told apart, and what is compared of them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from computing_service import ComputingService
from infaas_controller.api.http_limits import Limits
from pydantic import SecretStr
from serving import Serving, serving

from infaas.settings import AuthSettings, ControllerSettings, Settings

OWN_ID = re.compile(rb"\br-[0-9a-f]{10}-[0-9a-f]+")


@dataclass(frozen=True)
class Both:
    fast: Serving
    ordinary: Serving


@asynccontextmanager
async def serving_both(token: str, limits: Limits | None = None) -> AsyncIterator[Both]:
    settings = Settings(
        auth=AuthSettings(token=SecretStr(token)), controller=ControllerSettings(max_body_bytes=4 * 2**20)
    )
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(serving(ComputingService(), settings, limits=limits, has_fast_way=is_fast))
            for is_fast in (True, False)
        ]
        yield Both(*servers)


def counted(running: Serving) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What was counted; not how long anything took."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in running.metrics.registry.collect()
        for sample in family.samples
        if sample.name.endswith(("_total", "_count")) and not sample.name.startswith("infaas_bulk")
    }


def query_of(query: Any) -> Any:
    """Without what differs from run to run."""
    inputs = tuple(tensor._replace(data=bytes(tensor.data)) for tensor in query.inputs)
    id_ = "own" if OWN_ID.fullmatch(query.id.encode()) else query.id
    return query._replace(id=id_, inputs=inputs, arrived_at=0.0, deadline=round(query.deadline - query.arrived_at, 6))
