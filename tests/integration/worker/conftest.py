"""Real worker processes, ended after the test."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worker_values import Start

from infaas.testing.worker_driver import WorkerProcess


@pytest.fixture
async def start(own_redis_server) -> AsyncIterator[Start]:
    """Starts workers with a Redis of their own; ends them after the test."""
    started: list[WorkerProcess] = []

    def _start(**settings: Any) -> WorkerProcess:
        worker = WorkerProcess(own_redis_server.url, settings)
        started.append(worker)
        worker.start()
        return worker

    yield _start
    for worker in started:
        worker.end()


@pytest.fixture
def unused_port() -> int:
    """Free a moment ago; a test that loses the race fails loudly at binding."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
