"""A controller that answers before it has read the store says that it does not know, never that something is not there.

Who is told "not found" does not ask again; a restarted controller must not lose queries that way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from infaas.up.record import Endpoints, read_endpoints

if TYPE_CHECKING:
    from tests.conftest import RedisServer  # type: ignore[import-not-found]

PATIENCE_S = 60.0
BODY = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0.0]}]}
ASKED = [
    ("POST", "/v2/models/digits/infer", BODY),
    ("POST", "/v2/models/digits/versions/1/infer", BODY),
    ("GET", "/v2/models/digits", None),
    ("GET", "/v2/models/digits/ready", None),
    ("GET", "/v2/models/digits/stats", None),
    ("GET", "/v2/models", None),
    ("POST", "/v2/repository/index", {}),
    ("POST", "/v2/repository/models/digits/load", {}),
    ("GET", "/v1/workers", None),
    ("GET", "/v1/workers/w-1", None),
    ("POST", "/v1/workers/w-1/drain", None),
]


@pytest.fixture
def controller(own_redis_server: RedisServer, tmp_path: Path) -> Iterator[Endpoints]:
    """One that finds nobody where its store should be."""
    own_redis_server.kill()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFAAS_")}
    told = {
        "state_dir": str(tmp_path),
        "controller__http_port": "0",
        "controller__grpc_port": "0",
        "controller__metrics_port": "0",
        "store__redis_url": own_redis_server.url,
    }
    environ |= {f"INFAAS_{name.upper()}": value for name, value in told.items()}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "infaas.programs", "controller"], env=environ, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while (found := read_endpoints(tmp_path)) is None:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.02)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def test_nothing_is_said_not_to_exist_before_the_store_was_read(
    controller: Endpoints, own_redis_server: RedisServer
) -> None:
    with httpx.Client(base_url=controller.url, timeout=PATIENCE_S) as client:
        for method, path, body in ASKED:
            answer = client.request(method, path, json=body)
            said = answer.json()
            assert (answer.status_code, said["code"], said["retryable"]) == (503, "unavailable", True), (path, said)
            assert "has not read the metadata store" in json.dumps(said), (path, said)
            assert float(answer.headers["retry-after"]) > 0, path
        assert client.get("/v1/system").json()["store"]["state"] == "lost"

        with triton_grpc.InferenceServerClient(f"127.0.0.1:{controller.grpc_port}") as over_grpc:
            wanted = triton_grpc.InferInput("x", [1], "FP32")
            wanted.set_data_from_numpy(np.zeros(1, np.float32))
            with pytest.raises(InferenceServerException) as refused:
                over_grpc.infer("digits", [wanted])
            assert refused.value.status() == str(grpc.StatusCode.UNAVAILABLE)
            assert not over_grpc.is_model_ready("digits")

        own_redis_server.start()

        deadline = time.monotonic() + PATIENCE_S
        while (answer := client.post("/v2/models/digits/infer", json=BODY)).status_code == 503:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.05)
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), "an empty store holds nothing"
        assert client.get("/v2/models").json() == {"models": []}
        assert client.get("/v1/workers").json() == {"workers": []}
