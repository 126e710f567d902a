"""Makes this folder's helpers importable, and a server for the tests of the edges."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from computing_service import ComputingService
from serving import Serving, serving


@pytest.fixture(params=[True, False], ids=["fast", "ordinary"])
async def edges(request: pytest.FixtureRequest) -> AsyncIterator[Serving]:
    """Usual queries go the fast way, or the ordinary one like all the others: nobody can tell."""
    async with serving(ComputingService(), has_fast_way=request.param) as running:
        yield running
