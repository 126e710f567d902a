"""A private system for a benchmark: up in a folder of its own, models registered, gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from infaas.cli.system import up_environ
from infaas.cli.target import endpoints_of
from infaas.client import Client
from infaas.demo import family
from infaas.errors import UnavailableError
from infaas.up.detached import start_detached, stop
from infaas.up.tether import SUPERVISOR_PID

TASK = "digits"
SIMPLE_TASK, SIMPLE_MODEL = "simple", "simple-sum"
BUILT_WITHIN_S = 600.0
_LOOK_EVERY_S = 0.5


@contextmanager
def own_system(*, budget_s: float) -> Iterator[Client]:
    """`infaas up` on free ports; it ends with this process whatever happens to it."""
    with own_state(budget_s=budget_s) as (client, _):
        yield client


@contextmanager
def own_state(*, budget_s: float, settings: Mapping[str, str] | None = None) -> Iterator[tuple[Client, Path]]:
    """The same, with its state folder, which says what its programs are. `settings` are variables (`INFAAS_*`)."""
    state_dir = Path(tempfile.mkdtemp(prefix="infaas-bench-"))
    free = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    env = up_environ(state_dir=state_dir, config=None, controller=free, workers=None)
    env |= {"INFAAS_GENERATOR__PROFILE_BUDGET_S": str(budget_s), **(settings or {})}
    env[SUPERVISOR_PID] = str(os.getpid())
    try:
        start_detached(state_dir, env)
        endpoints = endpoints_of(state_dir)
        if endpoints is None:
            raise UnavailableError(f"the controller is gone again; see {state_dir}/logs/controller.log")
        with Client(endpoints.url) as client:
            yield client, state_dir
    finally:
        stop(state_dir)
        shutil.rmtree(state_dir)


def register(client: Client, models: Sequence[str], suffix: str = "") -> None:
    """Register models of the demo's family, under names that end in `suffix`, and wait until all of them serve."""
    chosen = [model for model in family.FAMILY if model.name in models]
    if missing := set(models) - {model.name for model in chosen}:
        raise SystemExit(f"not in the demo's family: {', '.join(sorted(missing))}")
    versions = {}
    for model in chosen:
        made = client.register(
            family.path(model.file),
            task=TASK,
            name=model.name + suffix,
            evaluation=family.path(family.EVAL_FILE),
            renames=model.renames,
        )
        versions[model.name + suffix] = made.version
    _wait_ready(client, versions)


def _wait_ready(client: Client, versions: Mapping[str, int]) -> None:
    deadline = time.monotonic() + BUILT_WITHIN_S
    for name, version in versions.items():
        while (state := client.version(name, version).state) != "READY":
            if state == "FAILED" or time.monotonic() > deadline:
                raise SystemExit(f"{name} is {state}")
            time.sleep(_LOOK_EVERY_S)


def register_simple(client: Client) -> None:
    """The sum and difference of two inputs, as task `simple`; returns when it serves."""
    made = client.register(
        family.path(family.SIMPLE_FILE),
        task=SIMPLE_TASK,
        name=SIMPLE_MODEL,
        evaluation=family.path(family.SIMPLE_EVAL_FILE),
    )
    _wait_ready(client, {SIMPLE_MODEL: made.version})


def images() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        return np.asarray(data[family.INPUT], dtype=np.float32)


class Caller:
    """One persistent connection that costs little: a query is a prepared body, an answer a status and headers."""

    def __init__(self, url: str, handle: str, rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        parts = urlsplit(url)
        self._connection = HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=10.0)
        self._path = f"/v2/models/{handle}/infer"
        self._bodies = [_body(rows[n : n + 1]) for n in range(len(rows))]
        self._at = 0

    def ask(self, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        head, body = self._bodies[self._at % len(self._bodies)]
        self._at += 1
        sent = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
            **headers,
        }
        self._connection.request("POST", self._path, head + body, sent)
        answer = self._connection.getresponse()
        content = answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content

    def close(self) -> None:
        self._connection.close()


def _body(rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> tuple[bytes, bytes]:
    data = np.ascontiguousarray(rows).tobytes()
    tensor = {
        "name": family.INPUT,
        "datatype": "FP32",
        "shape": list(rows.shape),
        "parameters": {"binary_data_size": len(data)},
    }
    head = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    return json.dumps(head, separators=(",", ":")).encode(), data
