"""Makes this folder's helpers importable, and a server for the tests of the edges."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from computing_service import ComputingService
from serving import Serving, serving


@pytest.fixture
async def edges() -> AsyncIterator[Serving]:
    async with serving(ComputingService()) as running:
        yield running
