"""The REST edge as the controller runs it, with little patience, over the service that computes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "integration" / "api"))

from computing_service import ComputingService
from infaas_controller.api.http_limits import Limits
from serving import Serving, serving

from infaas.settings import ControllerSettings, Settings

LIMITS = Limits(patience_s=0.5, least_bytes_per_s=2_000.0, linger_s=2.0)


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
async def impatient(request: pytest.FixtureRequest) -> AsyncIterator[Serving]:
    settings = Settings(controller=ControllerSettings(max_body_bytes=32 * 2**20))
    async with serving(ComputingService(), settings, limits=LIMITS, has_fast_way=request.param) as running:
        yield running
