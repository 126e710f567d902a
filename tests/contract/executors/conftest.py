"""One real Triton server for the whole suite, where there is a binary."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from infaas.testing.triton import TritonProcess, why_no_triton


@pytest.fixture(scope="session")
def triton_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    if (reason := why_no_triton()) is not None:
        pytest.skip(reason)
    server = TritonProcess(tmp_path_factory.mktemp("triton"))
    server.start()
    try:
        yield server
    finally:
        server.stop()
