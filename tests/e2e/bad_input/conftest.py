"""One system for all bad input: behind a token, with `simple` and a model that raises."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "integration" / "register"))

from guarded_system import SETTINGS, Guarded, Table
from raw_callers import GrpcCaller
from running_system import running

from infaas.testing import graphs


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("e2e")
    with running(folder, SETTINGS) as system:
        system.register_simple()
        model = folder / "look-up.onnx"
        model.write_bytes(graphs.look_up().data)
        system.infaas("model", "register", model, "--task", "table", "--accuracy", "1")
        grpc = GrpcCaller(system.endpoints.grpc)
        made = Guarded(system, grpc)
        made.assert_it_serves()
        yield made
        grpc.close()


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    made = Table()
    yield made
    if made.rows:
        made.write()
